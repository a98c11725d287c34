"""The training stages: one record each, for everything that tells them apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lr2ppo.config.schema import PointwiseConfig, PPOConfig, RewardConfig


@dataclass(frozen=True)
class Stage:
    """A training stage.

    `reads` is what its training clips must have, `model` the kind of model that a run keeps, `selects` the validation
    metric that chooses its weights, `step` what the stage counts. `sources` names, by config key, the stages of the
    runs that it starts from; `series` is its colour in every figure, as a number.
    """

    name: str
    title: str
    script: str
    config: type[PointwiseConfig] | type[RewardConfig] | type[PPOConfig]
    reads: Literal["grades", "pairs", "labels"]
    model: Literal["RelevanceRanker", "PartialOrderModel"]
    selects: str
    step: str
    series: int
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module whose `train` trains the stage."""
        return f"lr2ppo.stages.{self.name}"


_ALL = (
    Stage(
        name="pointwise",
        title="Stage 1: the ranker",
        script="pointwise.sh",
        config=PointwiseConfig,
        reads="grades",
        model="RelevanceRanker",
        selects="ndcg",
        step="step",
        series=0,
    ),
    Stage(
        name="reward",
        title="Stage 2: the reward model",
        script="reward_pair_dataloader.sh",
        config=RewardConfig,
        reads="pairs",
        model="PartialOrderModel",
        selects="pair_accuracy",
        step="step",
        series=1,
        sources={"ranker": "pointwise"},
    ),
    Stage(
        name="ppo",
        title="Stage 3: LR2PPO",
        script="ppo.sh",
        config=PPOConfig,
        reads="labels",
        model="RelevanceRanker",
        selects="ndcg",
        step="update",
        series=2,
        sources={"ranker": "pointwise", "reward": "reward"},
    ),
)
# By name, in the order in which they are trained.
STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ALL}


def stage_for_model(kind: str, named: str) -> Stage:
    """The stage called `named` where its runs keep such a model, else the first whose runs do.

    Raises LookupError where no stage keeps such a model.
    """
    keeping = {stage.name: stage for stage in _ALL if stage.model == kind}
    if not keeping:
        raise LookupError(f"no stage keeps a {kind}")
    return keeping.get(named, next(iter(keeping.values())))
