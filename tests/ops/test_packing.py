"""Packed text gives the results of a plain padded computation, and nothing is computed for padding."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lr2ppo.config.schema import ModelConfig
from lr2ppo.models import LabelEncoder
from lr2ppo.models.encoder import PooledHead
from lr2ppo.models.layers import FusionBlock
from lr2ppo.ops.packing import Packing

WIDTH, HEADS, TEXT_WIDTH, IMAGE_WIDTH = 16, 4, 12, 20
TOKENS, FRAMES = 6, 3
FEW = settings(deadline=None, max_examples=25)
heads = pytest.mark.parametrize("head", ["flatten", "pooled"])
kinds = pytest.mark.parametrize(("head", "attention"), [("flatten", "published"), ("pooled", "scaled")])


class Inputs(NamedTuple):
    """The inputs of a `LabelEncoder`."""

    text: Tensor
    frames: Tensor
    text_mask: Tensor
    frame_mask: Tensor


def make_encoder(head: str, attention: str = "scaled", dropout: float = 0.0) -> LabelEncoder:
    torch.manual_seed(0)
    shape = {"width": WIDTH, "heads": HEADS, "text_width": TEXT_WIDTH, "image_width": IMAGE_WIDTH}
    shape |= {"text_tokens": TOKENS, "frames": FRAMES}
    config = ModelConfig.model_validate({"head": head, "attention": attention, "dropout": dropout} | shape)
    return LabelEncoder(config).double()


def make_inputs(lengths: list[list[int]], tokens: int = TOKENS, frame_mask: Tensor | None = None) -> Inputs:
    """Clips whose labels have texts of the given lengths; a label of length 0 is padding."""
    labels = max(map(len, lengths))
    counts = torch.tensor([row + [0] * (labels - len(row)) for row in lengths])
    generator = torch.Generator().manual_seed(int(counts.sum()))
    if frame_mask is None:
        frame_mask = torch.ones(len(lengths), FRAMES, dtype=torch.bool)
    # Draw tokens before padding, so that their values do not depend on it.
    text = torch.zeros(len(lengths), labels, tokens, TEXT_WIDTH, dtype=torch.float64)
    text_mask = torch.arange(tokens) < counts.unsqueeze(-1)
    text[text_mask] = torch.randn(int(counts.sum()), TEXT_WIDTH, generator=generator, dtype=torch.float64)
    frames = torch.randn(*frame_mask.shape, IMAGE_WIDTH, generator=generator, dtype=torch.float64)
    return Inputs(text, frames, text_mask, frame_mask)


def encode(encoder: LabelEncoder, inputs: Inputs) -> Tensor:
    vectors: Tensor = encoder(inputs.text, inputs.frames, text_mask=inputs.text_mask, frame_mask=inputs.frame_mask)
    return vectors


def encode_padded(encoder: LabelEncoder, inputs: Inputs) -> Tensor:
    """Compute what `LabelEncoder` should, with padding, one clip at a time, with masks where tokens interact."""
    vectors = []
    for text, clip_frames, text_mask, frame_mask in zip(*inputs, strict=True):
        frames = encoder.image_proj(clip_frames)
        if encoder.config.head == "pooled":
            frames = frames + encoder._frame_positions(frames[None])
        fused = fuse_padded(encoder.fusion, encoder.text_proj(text), frames, frame_mask)
        if isinstance(encoder.head, PooledHead):
            weights = encoder.head.text_pool(fused).masked_fill(~text_mask[..., None], -math.inf).softmax(1)
            pooled = (weights.nan_to_num() * fused).sum(1)
            frame_weights = encoder.head.frame_pool(frames).masked_fill(~frame_mask[:, None], -math.inf).softmax(0)
            clip = (frame_weights * frames).sum(0).repeat(len(text), 1)
            row = torch.cat([fused[:, 1], pooled, clip], dim=1)
        else:
            padded = F.pad(fused * text_mask[..., None], (0, 0, 0, TOKENS - fused.shape[1]))
            every = (frames * frame_mask[:, None]).flatten().repeat(len(text), 1)
            row = torch.cat([padded.flatten(1), every], dim=1)
        vectors.append(encoder.head.mlp(row))
    return torch.stack(vectors)


def fuse_padded(block: FusionBlock, x: Tensor, frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Compute the fusion block of a clip's labels `[L, T, D]` and frames `[F, D]`, one head at a time."""
    attention, y = block.attention, block.norm_y(frames)
    queries, keys, values = attention.queries(block.norm_x(x)), attention.keys(y), attention.values(y)
    size = WIDTH // HEADS
    attended = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        logits = queries[..., part] @ keys[:, part].T
        logits = logits if attention.published else logits / math.sqrt(size)
        weights = logits.masked_fill(~frame_mask, -math.inf).softmax(-1)
        attended.append(weights @ values[:, part] / (math.sqrt(WIDTH) if attention.published else 1))
    x = x + attention.projection(torch.cat(attended, dim=-1))
    fused: Tensor = block.norm_out(x + block.ffn(block.norm_ffn(x)))
    return fused


def gradients(encoder: LabelEncoder, vectors: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter, for a loss of only the valid labels."""
    encoder.zero_grad()
    (vectors[valid] ** 3).mean().backward()
    found = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


@st.composite
def batches(draw: st.DrawFn) -> Inputs:
    """Clips of any number of labels and frames; a label has at least <s> and </s>, or is padding."""
    tokens = draw(st.integers(2, TOKENS))
    length = st.integers(2, tokens) | st.just(0)
    lengths = draw(st.lists(st.lists(length, min_size=1, max_size=4), min_size=1, max_size=3))
    lengths[draw(st.integers(0, len(lengths) - 1))][0] = tokens
    frame = st.lists(st.booleans(), min_size=FRAMES, max_size=FRAMES).filter(any)
    frame_mask = torch.tensor(draw(st.lists(frame, min_size=len(lengths), max_size=len(lengths))))
    return make_inputs(lengths, tokens, frame_mask)


@kinds
@FEW
@given(inputs=batches())
def test_packed_text_gives_the_vectors_and_gradients_of_the_padded_computation(
    head: str, attention: str, inputs: Inputs
) -> None:
    encoder = make_encoder(head, attention)
    valid = inputs.text_mask.any(-1)
    found, wanted = encode(encoder, inputs), encode_padded(encoder, inputs)
    torch.testing.assert_close(found[valid], wanted[valid])
    mine, theirs = gradients(encoder, found, valid), gradients(encoder, wanted, valid)
    learned = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert mine.keys() == theirs.keys() == learned
    for name, gradient in theirs.items():
        torch.testing.assert_close(mine[name], gradient)


@heads
def test_gradients_run_back_into_the_features_of_the_padded_computation(head: str) -> None:
    encoder = make_encoder(head)
    inputs = make_inputs([[4, 2], [3, 0]])
    valid = inputs.text_mask.any(-1)
    found = {}
    for compute in (encode, encode_padded):
        leaves = inputs._replace(
            text=inputs.text.clone().requires_grad_(), frames=inputs.frames.clone().requires_grad_()
        )
        (compute(encoder, leaves)[valid] ** 3).sum().backward()
        assert leaves.text.grad is not None
        found[compute] = (leaves.text.grad[inputs.text_mask], leaves.frames.grad)
    torch.testing.assert_close(found[encode], found[encode_padded])


@heads
@pytest.mark.parametrize("lengths", [[[4, 2], [3, 6]], [[4, 2, 6], [5, 0, 0]], [[0, 0], [0, 2]]])
def test_the_content_of_padding_is_never_read(head: str, lengths: list[list[int]]) -> None:
    encoder = make_encoder(head)
    inputs = make_inputs(lengths)
    poisoned = inputs._replace(text=inputs.text.masked_fill(~inputs.text_mask.unsqueeze(-1), math.nan))
    vectors = encode(encoder, poisoned)
    assert vectors.isfinite().all()
    assert torch.equal(vectors, encode(encoder, inputs))
    every_label = torch.ones_like(inputs.text_mask[..., 0])
    for name, gradient in gradients(encoder, vectors, every_label).items():
        assert gradient.isfinite().all(), name


def test_a_padded_label_sends_no_gradient_into_the_tokens_of_others() -> None:
    inputs = make_inputs([[4, 0, 2], [0, 0, 3]])
    text = inputs.text.requires_grad_()
    encode(make_encoder("pooled"), inputs)[~inputs.text_mask.any(-1)].sum().backward()
    assert text.grad is not None
    assert torch.all(text.grad == 0)


def count_flops(encoder: LabelEncoder, inputs: Inputs, *, training: bool) -> dict[str, int]:
    """Matrix-product FLOPs by module, `Global` for all; only `Global` counts gradients correctly."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        vectors = encode(encoder, inputs)
        if training:
            vectors.sum().backward()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


@pytest.mark.parametrize("training", [True, False])
def test_padded_tokens_cost_the_pooled_model_no_product(training: bool) -> None:
    encoder = make_encoder("pooled")
    short, long = (make_inputs([[8, 5, 2], [3, 7]], tokens) for tokens in (8, 80))
    assert torch.equal(short.text[short.text_mask], long.text[long.text_mask])
    flops = count_flops(encoder, short, training=training)
    assert flops["Global"] == count_flops(encoder, long, training=training)["Global"] > 0


@heads
def test_the_trunk_costs_what_its_valid_tokens_cost(head: str) -> None:
    encoder = make_encoder(head)
    flops = count_flops(encoder, make_inputs([[6, 3, 0, 0], [2, 0, 0, 0]]), training=False)
    hidden = 4 * WIDTH
    by_token = {"flatten": TEXT_WIDTH * hidden + hidden * WIDTH, "pooled": TEXT_WIDTH * WIDTH + 2 * WIDTH * hidden}
    assert flops["LabelEncoder.text_proj"] == 2 * (6 + 3 + 2) * by_token[head]
    assert flops["LabelEncoder.fusion.ffn"] == 2 * (6 + 3 + 2) * 2 * WIDTH * hidden
    assert flops["LabelEncoder.fusion.attention.queries"] == 2 * (6 + 3 + 2) * WIDTH**2


@heads
def test_a_mask_that_masks_nothing_is_no_mask(head: str) -> None:
    encoder = make_encoder(head)
    inputs = make_inputs([[TOKENS, TOKENS], [TOKENS, TOKENS]])
    assert torch.equal(encode(encoder, inputs), encoder(inputs.text, inputs.frames, frame_mask=inputs.frame_mask))


def test_dropout_acts_on_packed_text_only_in_training() -> None:
    encoder = make_encoder("pooled", dropout=0.5)
    inputs = make_inputs([[4, 2], [3, 6]])
    assert not torch.equal(encode(encoder, inputs), encode(encoder, inputs))
    encoder.eval()
    torch.testing.assert_close(encode(encoder, inputs), encode_padded(encoder, inputs))


@heads
def test_products_in_bfloat16_train_on_packed_text(head: str) -> None:
    encoder = make_encoder(head).float()
    inputs = Inputs(*(each.float() if each.is_floating_point() else each for each in make_inputs([[4, 2], [3, 0]])))
    valid = inputs.text_mask.any(-1)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = encode(encoder, inputs)
    wanted = encode(encoder, inputs)
    torch.testing.assert_close(vectors[valid].float(), wanted[valid], rtol=0.05, atol=0.02)
    precise = gradients(encoder, wanted, valid)
    for name, gradient in gradients(encoder, vectors.float(), valid).items():
        assert gradient.dtype == torch.float32
        scale = max(precise[name].abs().max().item(), 1e-3)
        torch.testing.assert_close(gradient, precise[name], rtol=0, atol=0.1 * scale)


@pytest.mark.slow
def test_a_compiled_model_takes_batches_of_any_number_of_tokens() -> None:
    encoder, compiled = make_encoder("pooled"), make_encoder("pooled")
    compiled.compile(backend="eager")
    for lengths in ([[4, 2], [3, 0]], [[6, 5], [2, 2]], [[6, 6], [6, 6]], [[2, 3], [0, 4]]):
        inputs = make_inputs(lengths)
        torch.testing.assert_close(encode(compiled, inputs), encode(encoder, inputs))


@FEW
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
    seed=st.integers(0, 1000),
    width=st.just(2),
)
def test_packing_and_unpacking_keep_the_place_of_tokens(shape: tuple[int, int, int], seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.6
    text = torch.randn(*shape, width, generator=generator)
    packing = Packing.of(mask)
    assert (packing is None) == bool(mask.all())
    if packing is None:
        return
    tokens = packing.pack(text)
    assert torch.equal(tokens, text[mask])
    assert torch.equal(packing.unpack(tokens), text * mask.unsqueeze(-1))
    rows = packing.clip_rows(tokens)
    assert rows.shape == (shape[0], mask.sum((1, 2)).max(), width)
    for row, clip, clip_mask in zip(rows, text, mask, strict=True):
        alone = clip[clip_mask]
        assert torch.equal(row[: len(alone)], alone)
        assert torch.all(row[len(alone) :] == 0)
    assert torch.equal(packing.from_clip_rows(rows), tokens)
