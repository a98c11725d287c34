"""Training steps: accumulation, activation checkpointing and precision do not change what is learned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lr2ppo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.training.learner import Learner, count_steps

SHAPE = ModelConfig(head="pooled", attention="scaled", width=16, heads=4, dropout=0.0)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, warmup=0.1)
DEFAULT = ComputeConfig(
    precision="fp32",
    accumulate=1,
    checkpoint_activations=False,
    compile=False,
    strategy="ddp",
    compress_gradients=False,
)


@pytest.fixture
def learner(alone: Processes) -> Callable[..., Learner[RelevanceRanker]]:
    """Build equal learners that differ in how they compute."""

    def make(**changes: object) -> Learner[RelevanceRanker]:
        torch.manual_seed(0)
        return Learner(RelevanceRanker(SHAPE), OPTIMIZER, 10, DEFAULT.model_copy(update=changes), alone)

    return make


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(2, 3, 4, 16, generator=generator), torch.randn(2, 5, 16, generator=generator))
        for _ in range(count)
    ]


def train(learner: Learner[RelevanceRanker], count: int = 4) -> list[bool]:
    made = []
    for text, frames in batches(count):
        with learner.autocast():
            loss = (learner.parallel(text, frames) - 1).square().mean()
        learner.backward(loss)
        made.append(learner.count())
    return made


def weights(learner: Learner[RelevanceRanker]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.part("weights").items()}


def test_a_step_is_made_of_the_mean_over_accumulated_batches(
    learner: Callable[..., Learner[RelevanceRanker]],
) -> None:
    parts, whole = learner(accumulate=2), learner()
    assert train(parts) == [False, True, False, True]
    data = batches(4)
    for first, second in (data[:2], data[2:]):
        text, frames = (torch.cat(pair) for pair in zip(first, second, strict=True))
        whole.backward((whole.parallel(text, frames) - 1).square().mean())
        assert whole.count()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=1e-4, atol=1e-6)


def test_gradients_are_freed_after_a_step(learner: Callable[..., Learner[RelevanceRanker]]) -> None:
    made = learner()
    train(made, 1)
    assert all(parameter.grad is None for parameter in made.model.parameters())


def numbers_kept(learner: Learner[RelevanceRanker]) -> int:
    """The number of elements that a forward pass saves for the backward pass."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.parallel(*batches(1)[0])
    return sum(sizes)


def test_activation_checkpointing_changes_only_the_memory_used(
    learner: Callable[..., Learner[RelevanceRanker]], tmp_path: Path
) -> None:
    plain, frugal = learner(), learner(checkpoint_activations=True)
    kept = []
    for made in (plain, frugal):
        kept.append(numbers_kept(made))
    assert kept[1] < 0.8 * kept[0]
    train(plain)
    train(frugal)
    frugal.save(tmp_path)
    saved = load_kind(tmp_path, RelevanceRanker).state_dict()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(saved[name], tensor)


def test_bfloat16_keeps_weights_scores_and_losses_in_float32(
    learner: Callable[..., Learner[RelevanceRanker]],
) -> None:
    single, half = learner(), learner(precision="bf16")
    with half.autocast():
        scores = half.parallel(*batches(1)[0])
        loss = (scores - 1).square().mean()
    assert scores.dtype == loss.dtype == torch.float32
    assert not torch.equal(scores, single.parallel(*batches(1)[0]))
    torch.testing.assert_close(scores, single.parallel(*batches(1)[0]), rtol=0.05, atol=0.05)
    train(half)
    assert {tensor.dtype for tensor in weights(half).values()} == {torch.float32}


def test_more_batches_a_step_than_the_run_has_are_refused() -> None:
    assert count_steps(9, DEFAULT.model_copy(update={"accumulate": 4})) == 2
    with pytest.raises(UserError, match=r"compute\.accumulate: found 4, but the run has 3 batches in all"):
        count_steps(3, DEFAULT.model_copy(update={"accumulate": 4}))
