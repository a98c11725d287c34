"""What stage 3 asks of a policy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor

from lr2ppo.config.schema import PPOConfig, PPOOptimizer
from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.training.learner import Learner
from lr2ppo.training.run import TrainingRun, Values

# A dataclass of a `batch` and tensors with one row per clip.
R = TypeVar("R", bound=Any)
# The scores [B, L] of a batch's labels by the ranker that the actor starts from.
StartScores = Callable[[ClipBatch], Tensor]
# The reward of a clip's labels in the order given, the best first.
ListReward = Callable[[Clip, Sequence[str]], float]
# The rewards [B, G] of lists [B, G, K] of positions in a batch's labels; mask [B, K] is False on padding.
BatchReward = Callable[[ClipBatch, Tensor, Tensor], Tensor]
# What gives the rewards: the reward model, a function of the user, or None for the clips' grades.
Reward = PartialOrderModel | ListReward | None


class Policy(Protocol[R]):
    """What stage 3 does with a batch: what a rollout collects, which models learn from it, and with which loss.

    The first of the `learners` is the ranker that the run trains. A `rollout` is a dataclass of a `batch` and tensors
    with one row per clip. `shown` is the logged value shown beside the progress bar.
    """

    @property
    def shown(self) -> str: ...

    @property
    def rollout(self) -> type[R]: ...

    @property
    def learners(self) -> Mapping[str, Learner[Any]]: ...

    @classmethod
    def draw(cls, clips: Sequence[Clip], config: PPOConfig) -> Draw:
        """Return the sampler of an epoch's requests."""

    @classmethod
    def open(
        cls,
        run: TrainingRun[PPOConfig],
        ranker: RelevanceRanker,
        reward: Reward,
        start_scores: StartScores,
        updates: int,
    ) -> Self:
        """Set up a run's models to train for `updates` updates; raises `UserError` if it cannot use the reward."""

    def roll_out(self, batch: ClipBatch) -> R:
        """Collect a rollout of the current weights on a batch."""

    def learn(self, rollout: R, is_first: bool) -> Values:
        """Make one step of every learner; return values to log. `is_first`: no step was made since the rollout."""


M = TypeVar("M", bound=RelevanceRanker | PartialOrderModel)


def open_learner(run: TrainingRun[PPOConfig], model: M, optimizer: PPOOptimizer, updates: int) -> Learner[M]:
    """Set up a model of stage 3 to train for `updates` updates, or as long as its own schedule spans."""
    steps = optimizer.schedule_updates or updates
    return Learner(model, optimizer, steps, run.config.compute, run.processes, run.config.safety.on_nonfinite)


def log_means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of each tensor, for the log."""
    return {name: tensor.detach().float().mean() for name, tensor in values.items()}
