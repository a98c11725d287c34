"""The text encoder: RoBERTa over the pair (label, description)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import RobertaProcessing
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedTokenizerFast, RobertaModel

from lr2ppo.encoders.weights.roberta import UNUSED_POSITIONS, load_roberta
from lr2ppo.errors import UserError, show
from lr2ppo.files import read_json_object
from lr2ppo.ops.linear import use_fast_linear

MAX_TOKENS = 196
# How many more tokens than needed are made of a long text: the last ones before a cut may differ from the uncut text's.
MARGIN_TOKENS = 16
# Parts of a BPE that no byte-level one has; dropout would make other tokens each time.
UNUSED_PARTS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


class TextEncoder(nn.Module):
    """RoBERTa and its tokenizer; features are the last hidden states."""

    def __init__(
        self,
        model: RobertaModel,
        tokenizer: PreTrainedTokenizerFast | None,
        max_tokens: int = MAX_TOKENS,
        tokenizer_folder: Path = Path(),
    ) -> None:
        super().__init__()
        self.model = model.eval()
        use_fast_linear(self.model)
        self.tokenizer_folder = tokenizer_folder
        self._tokenizer = tokenizer
        self.max_tokens = min(max_tokens, model.config.max_position_embeddings - UNUSED_POSITIONS)

    @classmethod
    def load(cls, path: Path | str, tokenizer: Path | str | None = None) -> Self:
        """Read a Hugging Face RoBERTa folder, or TencentPretrain's RoBERTa file or a folder with only that file.

        The layout is detected from the tensors; for the number of attention heads see `weights.files.count_heads`. The
        tokenizer comes from the folder `tokenizer`, by default that of the weights, where it may be missing as long as
        no text is encoded. Raises `UserError` if something else is missing or does not fit.
        """
        source = Path(path)
        model = load_roberta(source)
        folder = Path(tokenizer) if tokenizer else source if source.is_dir() else source.parent
        encoder = cls(model, load_tokenizer(folder, source, model.config.vocab_size), tokenizer_folder=folder)
        if tokenizer:
            encoder.require_tokenizer()
        return encoder

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; raises `UserError` if the encoder was loaded without one."""
        self.require_tokenizer()
        return self._tokenizer

    def require_tokenizer(self) -> None:
        """Raise `UserError` if the encoder was loaded without a tokenizer and so cannot encode text."""
        if self._tokenizer is None:
            raise UserError(
                f"{self.tokenizer_folder}: found no tokenizer.json or vocab.json with merges.txt; "
                "copy the encoder's tokenizer files there or give the folder that holds them"
            )

    def tokenizer_fingerprint(self) -> str:
        """A short hash of the tokenizer's vocabulary, to distinguish tokenizers."""
        vocabulary = sorted(cast(Mapping[str, int], self.tokenizer.get_vocab()).items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:12]

    def tokenizer_parts(self) -> str:
        """A short hash of all that decides which tokens a text becomes: merges, spaces, added tokens and vocabulary."""
        parts = byte_level_parts(json.loads(self.tokenizer.backend_tokenizer.to_str()))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def settings(self) -> str:
        """What decides the features besides tensors and tokenizer, in words."""
        config = self.model.config
        return f"{config.num_attention_heads} heads, {config.hidden_act}, epsilon {config.layer_norm_eps:g}"

    def tokenize(self, texts: Sequence[tuple[str, str]]) -> Mapping[str, Tensor]:
        """Tokenize as `<s> label </s></s> description </s>`, cut to `max_tokens` and padded: [B, T] ids and mask."""
        return cast(Mapping[str, Tensor], self._encode(texts))

    def _encode(self, texts: Sequence[tuple[str, str]]) -> BatchEncoding:
        # A text of megabytes takes seconds to tokenize, and only its first tokens are kept.
        longest = (self.max_tokens + MARGIN_TOKENS) * self._longest_token
        encoded = self._tokenize([(label[:longest], description[:longest]) for label, description in texts])
        for text, row in zip(texts, encoded.encodings, strict=True):
            # Tokenizers that skip spaces or replace whole words may have made too few tokens of a cut text.
            if max(map(len, text)) > longest and sum(row.attention_mask) < self.max_tokens:
                return self._tokenize(texts)
        return encoded

    def _tokenize(self, texts: Sequence[tuple[str, str]]) -> BatchEncoding:
        labels, descriptions = [label for label, _ in texts], [description for _, description in texts]
        return self.tokenizer(
            labels, descriptions, truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        )

    @cached_property
    def _longest_token(self) -> int:
        """The most characters that a token of a byte-level tokenizer stands for: such tokens have a letter a byte."""
        return max(map(len, self.tokenizer.get_vocab()))

    def label_spans(self, texts: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
        """Start and stop of the label's tokens in each text."""
        spans = []
        for text in self._encode(texts).encodings:
            label = [position for position, part in enumerate(text.sequence_ids) if part == 0]
            spans.append((label[0], label[-1] + 1) if label else (0, 1))
        return spans

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last hidden states `[B, T, D]` of token ids and mask `[B, T]`."""
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)

    @torch.inference_mode()
    def forward(self, texts: Sequence[tuple[str, str]]) -> list[Tensor]:
        """Features of (label, description) texts: one `[tokens, D]` tensor each, without padding."""
        tokens = self.tokenize(texts)
        device = self.model.device
        hidden = self.encode_ids(tokens["input_ids"].to(device), tokens["attention_mask"].to(device))
        return [row[:length] for row, length in zip(hidden, tokens["attention_mask"].sum(1).tolist(), strict=True)]


def load_tokenizer(folder: Path, encoder: Path, size: int) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a folder for an encoder of `size` tokens, None if it has none.

    Raises `UserError` if it is no byte-level BPE as RoBERTa's, or numbers tokens beyond the encoder's.
    """
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not (whole.is_file() or (vocabulary.is_file() and merges.is_file())):
        return None
    try:
        tokenizer = (
            Tokenizer.from_str(json.dumps(byte_level_parts(read_json_object(whole))))
            if whole.is_file()
            else ByteLevelBPETokenizer(str(vocabulary), str(merges))._tokenizer
        )
        numbers = cast(Mapping[str, int], tokenizer.get_vocab())
        # Before the tokenizer is copied: a copy takes memory for every number up to the last, used or not.
        tokens = 1 + max(numbers.values(), default=-1)
        if tokens > size:
            raise UserError(
                f"{folder}: found a tokenizer of {tokens} tokens, the encoder {encoder} has {size}; "
                "wanted the encoder's own"
            )
        if numbers.keys() >= {*SPECIAL_TOKENS}:
            return roberta_tokenizer(tokenizer)
    except UserError:
        raise
    except Exception as error:
        # The tokenizers library raises plain Exceptions.
        raise UserError(f"{folder}: its tokenizer files cannot be read: {error}; copy them again") from None
    raise UserError(f"{folder}: its tokenizer lacks tokens of RoBERTa; wanted {', '.join(SPECIAL_TOKENS)}")


def byte_level_parts(content: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer.json that decide which tokens a text becomes, in one form for all its versions.

    Raises ValueError if it is no byte-level BPE: other tokenizers can take any time and memory for a text.
    """
    model, splits = content.get("model"), content.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"found model {show(model and model.get('type'))}, wanted 'BPE'")
    if not isinstance(splits, dict) or splits.get("type") != "ByteLevel":
        raise ValueError(f"found pre_tokenizer {show(splits)}, wanted the one of type 'ByteLevel'")
    for owner, key in ((content, "normalizer"), *((model, key) for key in UNUSED_PARTS)):
        if owner.get(key):
            raise ValueError(f"found {key} {show(owner[key])}, wanted none, as RoBERTa's")
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    spaces = {key: splits.get(key, True) for key in ("add_prefix_space", "use_regex")}
    byte_level = {"type": "ByteLevel", "trim_offsets": True, **spaces}
    return {
        "version": "1.0",
        "added_tokens": content.get("added_tokens", []),
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": model["vocab"], "merges": merges, "unk_token": model.get("unk_token")},
    }


def roberta_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary has RoBERTa's special tokens, which puts them around texts as RoBERTa does.

    Not transformers' RobertaTokenizerFast, whose releases each change other parts of the tokenizer they are given.
    """
    first, padding, last, unknown, mask = SPECIAL_TOKENS
    tokens = tokenizer.get_vocab()
    tokenizer.post_processor = RobertaProcessing((last, tokens[last]), (first, tokens[first]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        # Transformers 4 would else take the space before a text's first word away.
        add_prefix_space=getattr(tokenizer.pre_tokenizer, "add_prefix_space", False),
        bos_token=first,
        cls_token=first,
        eos_token=last,
        sep_token=last,
        pad_token=padding,
        unk_token=unknown,
        mask_token=mask,
        model_input_names=["input_ids", "attention_mask"],
    )
