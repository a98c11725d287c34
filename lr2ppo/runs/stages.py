"""The training stages: one record each, with all that differs between them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lr2ppo.config.schema import DistillConfig, FinetuneConfig, PointwiseConfig, PPOConfig, RewardConfig, TrainingConfig


@dataclass(frozen=True)
class Stage:
    """A training stage.

    `reads` is what its training clips must have, `model` the kind of model that a run saves, `selects` the validation
    metric that selects its best weights, `step` what the stage counts. `sources` maps the config keys of the runs that
    it starts from to the stages that they may be of, the usual one first; `series` is the number of its colour in every
    figure.
    """

    name: str
    title: str
    script: str
    config: type[TrainingConfig]
    reads: Literal["grades", "pairs", "labels"]
    model: Literal["RelevanceRanker", "PartialOrderModel"]
    selects: str
    step: str
    series: int
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        name="finetune",
        title="Direct fine-tuning",
        script="finetune.sh",
        config=FinetuneConfig,
        reads="pairs",
        model="RelevanceRanker",
        selects="ndcg",
        step="step",
        series=3,
        sources={"ranker": ("pointwise",)},
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
        sources={"ranker": ("pointwise", "finetune")},
    ),
    Stage(
        name="distill",
        title="Distillation of the reward model",
        script="distill.sh",
        config=DistillConfig,
        reads="labels",
        model="RelevanceRanker",
        selects="ndcg",
        step="step",
        series=4,
        sources={"ranker": ("pointwise", "finetune"), "reward": ("reward",)},
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
        sources={"ranker": ("pointwise", "finetune"), "reward": ("reward",)},
    ),
)
# By name, in training order.
STAGES: Mapping[str, Stage] = {stage.name: stage for stage in _ALL}


def _with_sources(name: str) -> set[str]:
    """A stage and all stages whose runs it usually starts from, directly or not."""
    return {name}.union(*(_with_sources(usual) for usual, *_ in STAGES[name].sources.values()))


# The stages of LR2PPO, in training order: the others are what it is compared with.
LR2PPO: Mapping[str, Stage] = {name: stage for name, stage in STAGES.items() if name in _with_sources("ppo")}


def stage_for_model(kind: str, named: str) -> Stage:
    """The stage called `named` if its runs save this kind of model, else the first stage that does.

    Raises LookupError if no stage saves this kind of model.
    """
    stages = {stage.name: stage for stage in _ALL if stage.model == kind}
    if not stages:
        raise LookupError(f"no stage saves a {kind}")
    return stages.get(named, next(iter(stages.values())))
