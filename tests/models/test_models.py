"""The models: effects of padding, order and size, and the published attention computed by hand."""

import math
from functools import cache
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import LabelEncoder, PartialOrderModel, RelevanceRanker
from lr2ppo.models.layers import CrossAttention, FusionBlock
from lr2ppo.models.rankers import SLOTS
from lr2ppo.models.weights import new_model

TEXT_WIDTH, IMAGE_WIDTH = 12, 20
TOKENS, FRAMES = 7, 5
FEW = settings(deadline=None, max_examples=20)

Inputs = dict[str, Tensor]
Head = Literal["flatten", "pooled"]
Attention = Literal["published", "scaled"]
heads = pytest.mark.parametrize("head", ["flatten", "pooled"])
attentions = pytest.mark.parametrize("attention", ["published", "scaled"])


def shape(head: Head = "pooled", attention: Attention = "scaled", **keys: Any) -> ModelConfig:
    sizes = {"width": 16, "heads": 4, "dropout": 0.1, "text_tokens": TOKENS, "frames": FRAMES}
    return ModelConfig(
        head=head, attention=attention, **(sizes | {"text_width": TEXT_WIDTH, "image_width": IMAGE_WIDTH} | keys)
    )


def make_ranker(config: ModelConfig) -> RelevanceRanker:
    torch.manual_seed(0)
    return RelevanceRanker(config).double().eval()


@cache
def shared_ranker(head: Head, attention: Attention) -> RelevanceRanker:
    """A ranker for tests that only read its scores."""
    return make_ranker(shape(head, attention))


def make_order_model(config: ModelConfig) -> PartialOrderModel:
    torch.manual_seed(0)
    return PartialOrderModel(config).double().eval()


def draw_inputs(
    clips: int = 2, labels: int = 4, tokens: int = TOKENS, frames: int = FRAMES, *, seed: int = 1
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return {
        "text": torch.randn(clips, labels, tokens, TEXT_WIDTH, generator=generator, dtype=torch.float64),
        "frames": torch.randn(clips, frames, IMAGE_WIDTH, generator=generator, dtype=torch.float64),
        "text_mask": torch.ones(clips, labels, tokens, dtype=torch.bool),
        "frame_mask": torch.ones(clips, frames, dtype=torch.bool),
    }


def pad_with_noise(inputs: Inputs, *, labels: int = 0, tokens: int = 0, frames: int = 0, seed: int = 0) -> Inputs:
    """The same clips, padded with masked labels, tokens and frames of noise instead of zeros."""
    clips, old_labels, old_tokens, width = inputs["text"].shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (clips, old_labels + labels, old_tokens + tokens, width)
    text = 30 * torch.randn(sizes, generator=generator, dtype=torch.float64)
    text[:, :old_labels, :old_tokens] = inputs["text"]
    noise = 30 * torch.randn(clips, frames, IMAGE_WIDTH, generator=generator, dtype=torch.float64)
    return {
        "text": text,
        "frames": torch.cat([inputs["frames"], noise], dim=1),
        "text_mask": F.pad(inputs["text_mask"], (0, tokens, 0, labels)),
        "frame_mask": F.pad(inputs["frame_mask"], (0, frames)),
    }


def by_hand(block: CrossAttention, x: Tensor, y: Tensor, *, logit_scale: float, divisor: float) -> Tensor:
    """Compute attention from the layers' weights, one head and query at a time."""
    queries, keys, values = (
        F.linear(z, layer.weight, layer.bias) for z, layer in ((x, block.queries), (y, block.keys), (y, block.values))
    )
    width = x.shape[-1]
    size = width // block.heads
    gathered = torch.zeros_like(queries)
    for clip in range(len(x)):
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            for query in range(x.shape[1]):
                logits = keys[clip, :, part] @ queries[clip, query, part] * logit_scale
                gathered[clip, query, part] = logits.softmax(0) @ values[clip, :, part]
    return F.linear(gathered / divisor, block.projection.weight, block.projection.bias)


def test_published_attention_leaves_logits_unscaled_and_divides_by_the_root_of_the_full_width() -> None:
    torch.manual_seed(0)
    block = CrossAttention(16, 4, "published").double()
    x, y = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, y), by_hand(block, x, y, logit_scale=1.0, divisor=math.sqrt(16)))


def test_scaled_attention_is_the_ordinary_one() -> None:
    torch.manual_seed(0)
    block = CrossAttention(16, 4, "scaled").double()
    x, y = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, y), by_hand(block, x, y, logit_scale=1 / math.sqrt(4), divisor=1.0))


@attentions
def test_masked_context_is_not_attended_to(attention: Attention) -> None:
    torch.manual_seed(0)
    block = CrossAttention(16, 4, attention).double()
    x, y = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    found = block(x, y, mask)
    for clip in range(2):
        alone = block(x[clip : clip + 1], y[clip : clip + 1, mask[clip]])
        torch.testing.assert_close(found[clip : clip + 1], alone)


@attentions
def test_the_fusion_block_is_attention_and_feed_forward_with_residuals_and_norms(attention: Attention) -> None:
    torch.manual_seed(0)
    block = FusionBlock(16, 4, attention, dropout=0.1).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x, y = torch.randn(2, 3, 16, dtype=torch.float64), torch.randn(2, 5, 16, dtype=torch.float64)
    scale, divisor = (1.0, 4.0) if attention == "published" else (0.5, 1.0)
    hidden = x + by_hand(block.attention, block.norm_x(x), block.norm_y(y), logit_scale=scale, divisor=divisor)
    first, last = (layer for layer in block.ffn if isinstance(layer, nn.Linear))
    normed = F.layer_norm(hidden, (16,), block.norm_ffn.weight, block.norm_ffn.bias)
    hidden = hidden + F.linear(F.gelu(F.linear(normed, first.weight, first.bias)), last.weight, last.bias)
    expected = F.layer_norm(hidden, (16,), block.norm_out.weight, block.norm_out.bias)
    torch.testing.assert_close(block(x, y), expected)
    assert first.out_features == 64


def test_dropout_acts_only_in_training() -> None:
    ranker = make_ranker(shape(dropout=0.5))
    inputs = draw_inputs()
    assert torch.equal(ranker(**inputs), ranker(**inputs))
    ranker.train()
    assert not torch.equal(ranker(**inputs), ranker(**inputs))


@heads
@attentions
def test_a_ranker_scores_every_label_of_every_clip(head: Head, attention: Attention) -> None:
    inputs = draw_inputs(clips=3, labels=5)
    scores = make_ranker(shape(head, attention))(**inputs)
    assert scores.shape == (3, 5)
    assert len(set(scores.flatten().tolist())) == 15


@heads
@pytest.mark.parametrize(("text_width", "image_width"), [(16, 16), (8, 24), (24, 8), (8, 16), (16, 8)])
def test_features_may_have_different_widths(head: Head, text_width: int, image_width: int) -> None:
    config = shape(head, text_width=text_width, image_width=image_width)
    vectors = LabelEncoder(config)(torch.randn(2, 3, TOKENS, text_width), torch.randn(2, FRAMES, image_width))
    assert vectors.shape == (2, 3, 16)
    assert vectors.isfinite().all()


@heads
def test_features_without_a_width_given_have_the_models(head: Head) -> None:
    encoder = LabelEncoder(shape(head, text_width=None, image_width=None))
    assert encoder(torch.randn(2, 3, TOKENS, 16), torch.randn(2, FRAMES, 16)).shape == (2, 3, 16)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.width 16 is not a multiple of model\.heads 3"):
        LabelEncoder(shape(heads=3))


@attentions
@FEW
@given(labels=st.integers(0, 3), tokens=st.integers(0, 6), frames=st.integers(0, 4), seed=st.integers(0, 1000))
def test_padding_changes_no_score_of_the_pooled_model(
    attention: Attention, labels: int, tokens: int, frames: int, seed: int
) -> None:
    ranker = shared_ranker("pooled", attention)
    inputs = draw_inputs(seed=seed)
    padded = pad_with_noise(inputs, labels=labels, tokens=tokens, frames=frames)
    scores = ranker(**padded)
    torch.testing.assert_close(scores[:, :4], ranker(**inputs))
    assert scores.isfinite().all()


@attentions
@FEW
@given(labels=st.integers(0, 3), seed=st.integers(0, 1000))
def test_padding_labels_change_no_score_of_the_flatten_model(attention: Attention, labels: int, seed: int) -> None:
    ranker = shared_ranker("flatten", attention)
    inputs = draw_inputs(seed=seed)
    torch.testing.assert_close(ranker(**pad_with_noise(inputs, labels=labels))[:, :4], ranker(**inputs))


@attentions
@pytest.mark.parametrize("tokens", [1, 4])
def test_absent_and_masked_tokens_are_alike_to_the_flatten_model(attention: Attention, tokens: int) -> None:
    ranker = make_ranker(shape("flatten", attention))
    inputs = draw_inputs(tokens=tokens)
    padded = pad_with_noise(inputs, tokens=TOKENS - tokens)
    torch.testing.assert_close(ranker(**padded), ranker(**inputs))


@attentions
def test_masked_frames_change_no_score_of_the_flatten_model(attention: Attention) -> None:
    ranker = make_ranker(shape("flatten", attention))
    inputs = draw_inputs(frames=3)
    quiet, loud = (pad_with_noise(inputs, frames=2, seed=seed) for seed in (1, 2))
    assert not torch.equal(quiet["frames"], loud["frames"])
    torch.testing.assert_close(ranker(**quiet), ranker(**loud))


@attentions
@FEW
@given(
    lengths=st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=3), min_size=2, max_size=3),
    frames=st.integers(1, 5),
)
def test_a_clip_scores_the_same_alone_and_in_a_padded_batch(
    attention: Attention, lengths: list[list[int]], frames: int
) -> None:
    ranker = shared_ranker("pooled", attention)
    labels, tokens = max(map(len, lengths)), max(map(max, lengths))
    batch = draw_inputs(clips=len(lengths), labels=labels, tokens=tokens)
    frame_counts = [1 + (frames + clip) % FRAMES for clip in range(len(lengths))]
    for clip, (row, count) in enumerate(zip(lengths, frame_counts, strict=True)):
        batch["frame_mask"][clip, count:] = False
        batch["text_mask"][clip, len(row) :] = False
        for label, length in enumerate(row):
            batch["text_mask"][clip, label, length:] = False
    together = ranker(**batch)
    for clip, (row, count) in enumerate(zip(lengths, frame_counts, strict=True)):
        for label, length in enumerate(row):
            text, clip_frames = batch["text"][clip, label, :length], batch["frames"][clip, :count]
            alone = ranker(text[None, None], clip_frames[None])
            torch.testing.assert_close(together[clip, label], alone[0, 0])


@heads
@attentions
@FEW
@given(order=st.permutations(range(4)))
def test_scores_follow_their_labels(head: Head, attention: Attention, order: list[int]) -> None:
    ranker = shared_ranker(head, attention)
    inputs = draw_inputs()
    shuffled = inputs | {name: inputs[name][:, order] for name in ("text", "text_mask")}
    torch.testing.assert_close(ranker(**shuffled), ranker(**inputs)[:, order])


@heads
@pytest.mark.parametrize("part", ["text", "frames"])
def test_scores_depend_on_text_and_frames(head: Head, part: str) -> None:
    ranker = make_ranker(shape(head))
    inputs = draw_inputs()
    other = inputs | {part: draw_inputs(seed=2)[part]}
    assert (ranker(**inputs) - ranker(**other)).abs().min() > 1e-9


def test_the_pooled_model_depends_on_frame_order_but_not_on_token_order_within_a_frame() -> None:
    ranker = make_ranker(shape(tokens_per_frame=2))
    inputs = draw_inputs(frames=6)

    def reordered(*order: int) -> Tensor:
        scores: Tensor = ranker(**(inputs | {"frames": inputs["frames"][:, list(order)]}))
        return scores

    torch.testing.assert_close(reordered(1, 0, 3, 2, 5, 4), ranker(**inputs))
    assert (reordered(2, 3, 0, 1, 4, 5) - ranker(**inputs)).abs().min() > 1e-9


def test_the_pooled_model_starts_with_equal_projections_if_features_have_one_width() -> None:
    encoder = LabelEncoder(shape(text_width=16, image_width=16))
    x = torch.randn(3, 16)
    assert torch.equal(encoder.text_proj(x), encoder.image_proj(x))
    assert torch.equal(encoder.fusion.attention.queries(x), encoder.fusion.attention.keys(x))
    own = {id(parameter) for parameter in encoder.text_proj.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in encoder.image_proj.parameters())


@pytest.mark.parametrize(("tokens", "frames"), [(TOKENS + 1, FRAMES), (TOKENS, FRAMES + 1), (TOKENS, FRAMES - 1)])
def test_the_flatten_head_refuses_sizes_it_was_not_built_for(tokens: int, frames: int) -> None:
    ranker = make_ranker(shape("flatten"))
    with pytest.raises(ValueError, match=rf"built for {TOKENS} text tokens and {FRAMES} frames, got {tokens}"):
        ranker(**draw_inputs(tokens=tokens, frames=frames))


@pytest.mark.parametrize("tokens", [TOKENS, 3])
def test_the_flatten_head_is_an_mlp_over_all_tokens_and_frames_in_a_row(tokens: int) -> None:
    encoder = LabelEncoder(shape("flatten", "published")).double().eval()
    inputs = draw_inputs(tokens=tokens)
    found = encoder(inputs["text"], inputs["frames"])
    frames = encoder.image_proj(inputs["frames"])
    mlp = encoder.head.mlp
    for clip in range(2):
        for label in range(4):
            queries = encoder.text_proj(inputs["text"][clip, label])
            fused = encoder.fusion(queries[None], frames[clip : clip + 1])[0]
            absent = torch.zeros(TOKENS - tokens, 16, dtype=torch.float64)
            row = torch.cat([fused, absent, frames[clip]]).flatten()
            hidden = F.gelu(mlp.fc1.weight @ row + mlp.fc1.bias)
            torch.testing.assert_close(found[clip, label], mlp.fc2.weight @ hidden + mlp.fc2.bias)


@heads
@attentions
def test_many_orders_scored_together_equal_each_alone(head: Head, attention: Attention) -> None:
    model = make_order_model(shape(head, attention))
    inputs = draw_inputs()
    orders = torch.randint(4, (2, 6, 4), generator=torch.Generator().manual_seed(0))
    together = model(**inputs, order=orders)
    assert together.shape == (2, 6)
    for number in range(6):
        torch.testing.assert_close(model(**inputs, order=orders[:, number]), together[:, number])


@pytest.mark.parametrize("slots", [2, 3, 4])
def test_labels_encoded_before_are_scored_equally(slots: int) -> None:
    model = make_order_model(shape())
    inputs = draw_inputs()
    orders = torch.randint(4, (2, 5, slots), generator=torch.Generator().manual_seed(0))
    vectors = model.encoder(**inputs)
    torch.testing.assert_close(model.score_orders(vectors, orders), model(**inputs, order=orders))


@FEW
@given(st.permutations(range(4)).filter(lambda order: order != [0, 1, 2, 3]))
def test_the_order_of_the_slots_matters(order: list[int]) -> None:
    model = make_order_model(shape())
    vectors = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    as_given, otherwise = model.score_orders(vectors, torch.tensor([[[0, 1, 2, 3], order]]))[0].tolist()
    assert abs(as_given - otherwise) > 1e-9


def test_an_order_is_scored_equally_for_any_positions_of_its_labels() -> None:
    model = make_order_model(shape())
    inputs = draw_inputs()
    order = torch.tensor([[0, 1, 1, 0], [2, 3, 2, 3]])
    shuffle = torch.tensor([3, 1, 0, 2])
    shuffled = inputs | {name: inputs[name][:, shuffle] for name in ("text", "text_mask")}
    moved = shuffle.argsort()[order]
    torch.testing.assert_close(model(**shuffled, order=moved), model(**inputs, order=order))


def test_reading_only_the_last_slot_equals_the_whole_sequence() -> None:
    model = make_order_model(shape(attention="published"))
    vectors = torch.randn(2, 4, 16, dtype=torch.float64)
    order = torch.tensor([[0, 1, 1, 0], [2, 3, 3, 2]])
    slots = torch.stack([row[positions] for row, positions in zip(vectors, order, strict=True)])
    slots = slots + model.slot_embedding.weight[:4]
    expected = model.score(model.block(slots, slots)[:, -1]).squeeze(-1)
    torch.testing.assert_close(model.score_orders(vectors, order.unsqueeze(1)).squeeze(1), expected)


@attentions
def test_padding_changes_no_score_of_an_order(attention: Attention) -> None:
    model = make_order_model(shape(attention=attention))
    inputs = draw_inputs()
    order = torch.tensor([[0, 3, 3, 0], [1, 2, 1, 2]])
    padded = pad_with_noise(inputs, labels=2, tokens=3, frames=2)
    torch.testing.assert_close(model(**padded, order=order), model(**inputs, order=order))


# A bias shared by all logits does not change a softmax; its gradient is 0.
SHARED_BIASES = ("attention.keys.bias", "text_pool.bias", "frame_pool.bias")


def assert_gradients_everywhere(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name.endswith(("keys.bias", "_pool.bias")), name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        largest = parameter.grad.abs().max().item()
        assert (largest < 1e-9) if name.endswith(SHARED_BIASES) else (largest > 1e-9), (name, largest)


@heads
@attentions
def test_gradients_reach_every_parameter_of_the_ranker(head: Head, attention: Attention) -> None:
    ranker = make_ranker(shape(head, attention)).train()
    (ranker(**pad_with_noise(draw_inputs(), labels=1)) ** 2).mean().backward()
    assert_gradients_everywhere(ranker)


@heads
@attentions
def test_gradients_reach_every_parameter_of_the_order_model(head: Head, attention: Attention) -> None:
    model = make_order_model(shape(head, attention)).train()
    orders = torch.tensor([[[0, 1, 1, 0], [0, 1, 0, 1]], [[2, 3, 2, 3], [3, 0, 0, 3]]])
    (model(**draw_inputs(), order=orders) ** 2).mean().backward()
    assert_gradients_everywhere(model)
    assert model.slot_embedding.weight.grad is not None
    assert torch.all(model.slot_embedding.weight.grad.abs().sum(1) > 1e-9)


def test_a_critic_of_two_slots_trains_only_the_first_two() -> None:
    model = make_order_model(shape())
    model(**draw_inputs(), order=torch.tensor([[0, 1], [2, 3]])).sum().backward()
    gradient = model.slot_embedding.weight.grad
    assert gradient is not None
    assert len(gradient) == SLOTS
    assert torch.all(gradient[2:] == 0)
    assert torch.all(gradient[:2].abs().sum(1) > 1e-9)


def test_masked_labels_and_frames_send_no_gradient_back() -> None:
    ranker = make_ranker(shape())
    padded = pad_with_noise(draw_inputs(), labels=1, tokens=2, frames=2)
    text, frames = padded["text"].requires_grad_(), padded["frames"].requires_grad_()
    ranker(text, frames, text_mask=padded["text_mask"], frame_mask=padded["frame_mask"])[:, :4].sum().backward()
    assert text.grad is not None
    assert frames.grad is not None
    assert torch.all(text.grad[~padded["text_mask"]] == 0)
    assert torch.all(frames.grad[~padded["frame_mask"]] == 0)
    assert text.grad[padded["text_mask"]].abs().max() > 0
    assert frames.grad[padded["frame_mask"]].abs().max() > 0


@pytest.mark.parametrize("kind", [RelevanceRanker, PartialOrderModel])
@pytest.mark.parametrize("width", [2**20, 2**30, 2**40, 2**62])
@heads
def test_a_model_that_no_memory_can_hold_is_refused_before_it_is_built(
    kind: type[RelevanceRanker] | type[PartialOrderModel], width: int, head: Head
) -> None:
    with pytest.raises(UserError, match=rf"model\.width: found {width}, whose weights take .* GiB, wanted at most"):
        new_model(kind, shape(head, width=width))


@heads
def test_a_model_that_fits_is_built(head: Head) -> None:
    assert new_model(RelevanceRanker, shape(head)).encoder.config == shape(head)
