"""Rankers that read a clip's other labels: the identity at first, blind to order and padding, able to use the list."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.context import CONTEXTS
from lr2ppo.models.published import published_tensors
from tests.conftest import REPOSITORY
from tests.models.test_models import Inputs, draw_inputs, pad_with_noise, shape

contexts = pytest.mark.parametrize("context", list(CONTEXTS))
FEW = settings(deadline=None, max_examples=20)


def make_ranker(context: str, seed: int = 0) -> RelevanceRanker:
    torch.manual_seed(seed)
    return RelevanceRanker(shape(context=context)).double().eval()


def make_reader(context: str, seed: int = 0) -> RelevanceRanker:
    """A ranker whose context has left its start."""
    ranker = make_ranker(context, seed)
    assert ranker.context is not None
    for weight in ranker.context.parameters():
        nn.init.normal_(weight, std=0.5)
    return ranker


@torch.no_grad()
def score(ranker: RelevanceRanker, inputs: Inputs) -> Tensor:
    scores: Tensor = ranker(**inputs)
    return scores


@contexts
def test_a_context_starts_as_the_identity(context: str) -> None:
    ranker, alone = make_ranker(context), make_ranker("none")
    missing, unexpected = ranker.load_state_dict(alone.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("context.") for name in missing)
    torch.testing.assert_close(score(ranker, draw_inputs()), score(alone, draw_inputs()), rtol=0, atol=0)


@contexts
@FEW
@given(data=st.data(), labels=st.integers(1, 6))
def test_labels_in_another_order_get_the_same_scores(context: str, data: st.DataObject, labels: int) -> None:
    ranker, inputs = make_reader(context), draw_inputs(labels=labels)
    order = torch.tensor(data.draw(st.permutations(range(labels))))
    shuffled = inputs | {name: inputs[name][:, order] for name in ("text", "text_mask")}
    torch.testing.assert_close(score(ranker, shuffled), score(ranker, inputs)[:, order])


@pytest.mark.parametrize("context", sorted(CONTEXTS.keys() - {"dlcm"}))
def test_a_label_given_twice_gets_one_score(context: str) -> None:
    ranker, inputs = make_reader(context), draw_inputs()
    for name in ("text", "text_mask"):
        inputs[name][:, 1] = inputs[name][:, 0]
    scores = score(ranker, inputs)
    torch.testing.assert_close(scores[:, 1], scores[:, 0])


@contexts
@FEW
@given(labels=st.integers(0, 3), tokens=st.integers(0, 2), frames=st.integers(0, 2))
def test_padding_changes_nothing(context: str, labels: int, tokens: int, frames: int) -> None:
    ranker, inputs = make_reader(context), draw_inputs()
    padded = score(ranker, pad_with_noise(inputs, labels=labels, tokens=tokens, frames=frames))
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, : inputs["text"].shape[1]], score(ranker, inputs))


@contexts
def test_a_score_depends_on_the_other_labels_of_the_clip_and_on_no_other_clip(context: str) -> None:
    ranker, inputs, others = make_reader(context), draw_inputs(), draw_inputs(seed=2)
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["text"][0, 1:] = others["text"][0, 1:]
    before, after = score(ranker, inputs), score(ranker, changed)
    assert (before[0, 0] - after[0, 0]).abs() > 1e-6
    torch.testing.assert_close(before[1], after[1])


@contexts
def test_every_weight_of_a_context_learns(context: str) -> None:
    ranker = make_reader(context)
    ranker(**draw_inputs()).square().sum().backward()
    assert ranker.context is not None
    without = [
        name
        for name, weight in ranker.context.named_parameters()
        if weight.requires_grad and (weight.grad is None or not weight.grad.any())
    ]
    assert not without


@contexts
def test_a_context_learns_a_grade_that_no_label_shows_alone(context: str) -> None:
    """A grade is the distance from the mean of the list, which a label alone does not show."""
    torch.manual_seed(0)
    model = CONTEXTS[context](shape(context=context, dropout=0.0))
    read = nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *read.parameters()], lr=3e-3)
    for _ in range(300):
        vectors = torch.randn(64, 5, 16) + 2 * torch.randn(64, 1, 16)
        wanted = (vectors - vectors.mean(1, keepdim=True))[..., 0]
        found = read(model(vectors, vectors[..., 1], torch.ones(64, 5, dtype=torch.bool))).squeeze(-1)
        loss = F.mse_loss(found, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The best guess from a label alone leaves .67 of the variance of .8.
    assert loss.item() < 0.35


def test_the_reward_model_and_the_published_layout_have_no_context() -> None:
    with pytest.raises(UserError, match=r"model\.context: found prm, wanted none"):
        load_config(REPOSITORY / "configs" / "mini" / "reward.yaml", "reward", ["model.context=prm"])
    flatten: ModelConfig = shape("flatten", "published", heads=8, context="prm")
    with pytest.raises(ValueError, match=r"model\.context prm"):
        published_tensors(RelevanceRanker(flatten))
