"""The text encoder: RoBERTa over the pair (label, description)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, RobertaModel
from transformers.utils import logging as transformers_logging

from lr2ppo.errors import UserError

MAX_TOKENS = 196


class TextEncoder(nn.Module):
    """RoBERTa and its tokenizer; features are the last hidden states."""

    def __init__(self, model: RobertaModel, tokenizer: AutoTokenizer, max_tokens: int = MAX_TOKENS) -> None:
        super().__init__()
        self.model = model.eval()
        self.tokenizer = tokenizer
        # Position numbers start behind the padding index, so two rows of the position table are never used.
        self.max_tokens = min(max_tokens, model.config.max_position_embeddings - 2)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a Hugging Face RoBERTa folder with its tokenizer; raises `UserError` where something is missing."""
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: found no config.json, wanted a Hugging Face RoBERTa folder")
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(
                f"{folder}: found no tokenizer.json or vocab.json; copy the encoder's tokenizer files there"
            )
        transformers_logging.disable_progress_bar()
        try:
            # The folder may hold a language-model head that is not wanted here; saying so on each load helps nobody.
            previous, _ = transformers_logging.get_verbosity(), transformers_logging.set_verbosity_error()
            model = RobertaModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot be loaded as a RoBERTa encoder: {error}") from None
        finally:
            transformers_logging.set_verbosity(previous)
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    def tokenize(self, texts: Sequence[tuple[str, str]]) -> Mapping[str, Tensor]:
        """`<s> label </s></s> description </s>`, cut to the longest text read and padded: [B, T] ids and mask."""
        labels, descriptions = [label for label, _ in texts], [description for _, description in texts]
        encoded = self.tokenizer(
            labels, descriptions, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        )
        return cast(Mapping[str, Tensor], encoded)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states `[B, T, D]` of token ids and mask `[B, T]`."""
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)

    @torch.inference_mode()
    def forward(self, texts: Sequence[tuple[str, str]]) -> list[Tensor]:
        """Features of (label, description) texts: a `[tokens, D]` tensor each, without padding."""
        tokens = self.tokenize(texts)
        device = self.model.device
        hidden = self.encode_ids(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        return [row[:length] for row, length in zip(hidden, tokens["attention_mask"].sum(1).tolist(), strict=True)]


def fingerprint(module: nn.Module) -> str:
    """A short hash of a module's weights, to tell features of different encoders apart."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
