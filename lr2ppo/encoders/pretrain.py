"""Train tiny encoders from a folder's pictures and texts, for work without pretrained weights.

Three losses of equal weight: which pictures' captions name a label (contrast between the label's token and each
picture's best patch), masked words, and whether the text contains the label.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models import VisionTransformer
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM
from transformers.utils import logging as transformers_logging

from lr2ppo.config.schema import OptimizerConfig
from lr2ppo.data.captions import PRETRAINED_ON, Captions, captions_fingerprint, contains_words, read_captions
from lr2ppo.data.frames import read_image
from lr2ppo.distributed.processes import choose_device
from lr2ppo.encoders.image import ImageEncoder
from lr2ppo.encoders.text import SPECIAL_TOKENS, TextEncoder, roberta_tokenizer
from lr2ppo.errors import UserError
from lr2ppo.files import atomic_folder, check_no_link, write_json
from lr2ppo.training.learner import build_optimizer

BASE_VIT = "vit_tiny_patch16_224"
MASKED_SHARE = 0.15
MATCHED_LOSS_LIMIT = 0.3


def build_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts, with RoBERTa's special tokens."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, min_frequency=2, special_tokens=[*SPECIAL_TOKENS], show_progress=False
    )
    return roberta_tokenizer(bpe._tokenizer)


def build_text_model(vocabulary: int, width: int, layers: int, heads: int, max_tokens: int) -> RobertaForMaskedLM:
    """A tiny RoBERTa, initialised so that training does not stall on a plateau where it matches no texts."""
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=max_tokens + 2,
        type_vocab_size=1,
        initializer_range=1 / math.sqrt(width),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = RobertaForMaskedLM(config)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            # With keys equal to queries, equal words attend to each other from the first step.
            layer.attention.self.key.weight.copy_(layer.attention.self.query.weight)
    return model


def build_image_model(
    width: int, layers: int, heads: int, size: int, patch: int
) -> tuple[VisionTransformer, dict[str, int]]:
    """A tiny timm ViT and the arguments to rebuild it."""
    shape = {"img_size": size, "patch_size": patch, "embed_dim": width, "depth": layers, "num_heads": heads}
    model = timm.create_model(BASE_VIT, num_classes=0, **shape)
    model.pretrained_cfg |= {"input_size": (3, size, size), "crop_pct": 1.0, "num_classes": 0}
    return model, shape


class Pretraining(nn.Module):
    """The two encoders and the small heads of the three losses; the heads are discarded afterwards."""

    def __init__(self, text: RobertaForMaskedLM, encoder: TextEncoder, image: ImageEncoder, captions: Captions) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.encoder, self.captions = encoder, captions
        self.texts = [*captions.captions, *captions.texts]
        self.text_names = np.concatenate([captions.named, contains_words(captions.texts, captions.words)])
        self.is_in_text = nn.Linear(text.config.hidden_size, 1)
        self.temperature = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, pixels: Tensor, pictures: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        """The three losses of a batch of pictures `[B, 3, H, W]` with numbers `pictures [B]`."""
        named = self.captions.named
        # Half of the texts are other than the pictures' captions: a label must look the same with any text.
        others = rng.integers(len(self.texts), size=len(pictures))
        texts = np.where(rng.random(len(pictures)) < 0.5, pictures, others)
        words = np.array([_draw_word(self.text_names[text], rng) for text in texts])
        tokens = self.encoder.tokenize(
            [(self.captions.words[w], self.texts[t]) for w, t in zip(words, texts, strict=True)]
        )
        device = pixels.device
        ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
        masked_ids, is_masked = self._mask_words(ids, mask)
        hidden = self.text.roberta(input_ids=masked_ids, attention_mask=mask).last_hidden_state
        # The label's first token follows <s>.
        label = hidden[:, 1]

        patches = F.normalize(self.image.frame_features(self.image.encode_pixels(pixels)), dim=-1)
        similarity = torch.einsum("td,bpd->tbp", F.normalize(label, dim=-1), patches).amax(-1)
        names = torch.from_numpy(named[pictures][:, words].T).to(device)
        in_text = torch.from_numpy(self.text_names[texts, words]).to(device).float()
        return {
            "contrast": _contrast(similarity * self.temperature.exp(), names),
            "words": F.cross_entropy(self.text.lm_head(hidden[is_masked]), ids[is_masked]),
            "in_text": F.binary_cross_entropy_with_logits(self.is_in_text(label).squeeze(-1), in_text),
        }

    def _mask_words(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mask a share of the description's tokens, but no token of the label, which the model must find there."""
        tokenizer = self.encoder.tokenizer
        separator = ids == tokenizer.sep_token_id
        description = (separator.cumsum(1) >= 2) & ~separator & mask.bool()
        of_label = (separator.cumsum(1) == 0) & (ids != tokenizer.cls_token_id)
        label_ids = ids.masked_fill(~of_label, -1)
        repeats_label = (ids.unsqueeze(2) == label_ids.unsqueeze(1)).any(2)
        chosen = description & ~repeats_label & (torch.rand(ids.shape, device=ids.device) < MASKED_SHARE)
        return ids.masked_fill(chosen, tokenizer.mask_token_id), chosen


def _draw_word(named: NDArray[np.bool_], rng: np.random.Generator) -> int:
    """Draw a word of the text or one that is not in it, with equal probability."""
    wanted = named if rng.random() < 0.5 and named.any() else ~named
    return int(rng.choice(np.flatnonzero(wanted))) if wanted.any() else int(rng.integers(len(named)))


def _contrast(logits: Tensor, names: Tensor) -> Tensor:
    """Cross-entropy of texts against pictures and back; all true matches `[texts, pictures]` share the target."""
    loss = logits.new_zeros(())
    for rows, matches in ((logits, names), (logits.T, names.T)):
        some = matches.any(1)
        target = matches[some].float()
        loss = loss - (rows[some].log_softmax(-1) * target / target.sum(1, keepdim=True)).sum(1).mean() / 2
    return loss


def load_pictures(paths: Sequence[Path], image: ImageEncoder) -> Tensor:
    """Load all pictures, preprocessed for the encoder, in half precision: `[pictures, 3, H, W]`."""
    pictures = []
    for path in tqdm(paths, desc="reading pictures", unit="picture", disable=None):
        pictures.append(image.prepare(read_image(path)).half())
    return torch.stack(pictures)


def train(
    model: Pretraining, pixels: Tensor, steps: int, batch: int, learning_rate: float, seed: int
) -> dict[str, float]:
    """Train with AdamW and a cosine schedule; returns each loss, averaged over the last tenth of the steps."""
    rng = np.random.default_rng(seed)
    optimizer, schedule = build_optimizer(
        model.parameters(), OptimizerConfig(learning_rate=learning_rate, weight_decay=0.01, warmup=0.1), steps
    )
    device = model.temperature.device
    last: dict[str, list[float]] = {}
    progress = tqdm(range(steps), desc="pretraining encoders", unit="step", disable=None)
    for step in progress:
        pictures = rng.choice(len(pixels), size=min(batch, len(pixels)), replace=False)
        losses = model(pixels[pictures].to(device).float(), pictures, rng)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()})
        if step >= steps - max(1, steps // 10):
            for name, loss in losses.items():
                last.setdefault(name, []).append(loss.item())
    return {name: float(np.mean(values)) for name, values in last.items()}


def pretrain(
    data: Path,
    out: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    learning_rate: float,
    width: int,
    layers: int,
    heads: int,
    image_size: int,
    patch_size: int,
    vocabulary: int,
    max_tokens: int,
    pictures: int,
    device: str,
) -> dict[str, float]:
    """Train both encoders on a data folder and write them as `OUT/roberta` and `OUT/vit`; returns their last losses.

    Raises `UserError` if a folder cannot be used, if `out` has other encoders than those of an earlier pretraining, or
    if the encoders did not learn.
    """
    torch.manual_seed(seed)
    # Training takes minutes: a place that cannot be written is found before it.
    out.mkdir(parents=True, exist_ok=True)
    for encoder in ("roberta", "vit"):
        _check_replaceable(out / encoder)
    fingerprint = captions_fingerprint(data)
    captions = read_captions(data, pictures, np.random.default_rng(seed))
    # The two encoders belong together.
    record = {"data": fingerprint, "pretraining": secrets.token_hex(8)}
    tokenizer = build_tokenizer([*captions.captions, *captions.texts, *captions.words], vocabulary)
    text = build_text_model(len(tokenizer), width, layers, heads, max_tokens)
    vit, shape = build_image_model(width, layers, heads, image_size, patch_size)
    image = ImageEncoder(vit, "patches")
    model = Pretraining(text, TextEncoder(text.roberta, tokenizer, max_tokens), image, captions)
    model = model.to(choose_device(device)).train()
    pixels = load_pictures(captions.pictures, image)
    if captions_fingerprint(data) != fingerprint:
        raise UserError(f"{data}: changed while it was read; run the same command again")
    losses = train(model, pixels, steps, batch, learning_rate, seed)
    if not np.isfinite([*losses.values()]).all():
        raise UserError(
            f"pretraining: found losses {losses}, wanted numbers; try more --batch, or a lower --learning-rate"
        )
    if losses["in_text"] > MATCHED_LOSS_LIMIT:
        raise UserError(
            f"pretraining did not learn whether a text contains a label (loss {losses['in_text']:.2f}, wanted "
            f"at most {MATCHED_LOSS_LIMIT}); try another --seed or more --steps"
        )
    save(out, text, tokenizer, vit, shape, record)
    return losses


def _check_replaceable(folder: Path) -> None:
    """Raise `UserError` if a folder is a link, or is there and no earlier pretraining wrote it."""
    check_no_link(folder)
    if folder.exists() and not (folder / PRETRAINED_ON).is_file():
        raise UserError(
            f"{folder}: exists, and is not from lr2ppo pretrain, which would replace all in it; give another --out, or "
            "remove this folder"
        )


def save(
    out: Path,
    text: RobertaForMaskedLM,
    tokenizer: PreTrainedTokenizerFast,
    vit: VisionTransformer,
    shape: dict[str, int],
    record: Mapping[str, str] | None = None,
) -> None:
    """Write a Hugging Face RoBERTa folder with its tokenizer, and a timm ViT folder with its config, each when whole.

    Each keeps the `record` of what it was trained on, if there is one. Raises `UserError` if one of them is no folder.
    """
    transformers_logging.disable_progress_bar()
    with atomic_folder(out / "roberta", replaces=True) as folder:
        text.cpu().eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / PRETRAINED_ON, record)
    with atomic_folder(out / "vit", replaces=True) as folder:
        timm.models.save_for_hf(vit.cpu().eval(), str(folder), model_args=shape, safe_serialization=True)
        write_json(folder / PRETRAINED_ON, record)
