"""The training stages: one record each, with all that differs between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lr2ppo.config.schema import PointwiseConfig, PPOConfig, RewardConfig


@dataclass(frozen=True)
class Stage:
    """A training stage.

    `reads` is what its training clips must have, `model` the kind of model that a run saves, `selects` the validation
    metric that selects its best weights, `step` what the stage counts. `sources` maps config keys to the stages of the
    runs that it starts from; `series` is the number of its colour in every figure.
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
        """The name of the module with the stage's `train`."""
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
# By name, in training order.
STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ALL}


def stage_for_model(kind: str, named: str) -> Stage:
    """The stage called `named` if its runs save this kind of model, else the first stage that does.

    Raises LookupError if no stage saves this kind of model.
    """
    stages = {stage.name: stage for stage in _ALL if stage.model == kind}
    if not stages:
        raise LookupError(f"no stage saves a {kind}")
    return stages.get(named, next(iter(stages.values())))
