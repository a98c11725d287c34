"""Replaceable parts: the loss, models that read whole lists, and the policy of stage 3."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import PPOConfig
from lr2ppo.data.annotations import SOURCE_TRAIN, Clip
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw, whole_clips
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.metrics import chance_ndcg
from lr2ppo.losses import PREFERENCE_LOSSES, RANKING_LOSSES
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import KINDS, load_kind
from lr2ppo.policies.policy import Reward, StartScores
from lr2ppo.stages import pointwise, ppo, reward
from lr2ppo.stages.evaluate import evaluate
from lr2ppo.training.learner import Learner
from lr2ppo.training.run import TrainingRun, Values
from tests.conftest import LABELS, REPOSITORY
from tests.stages.test_stages import PUBLISHED

Overrides = Callable[..., list[str]]
PRESET = REPOSITORY / "configs" / "mini"
SHORT = ("name=a", "data.frames=3", "train.epochs=2", "train.clips_per_batch=8")


def run_stage(stage: str, processes: Processes, overrides: list[str], **more: Any) -> Path:
    stages: dict[str, Callable[..., None]] = {"pointwise": pointwise.train, "reward": reward.train, "ppo": ppo.train}
    published = PUBLISHED if stage == "ppo" else ()
    config = load_config(PRESET / f"{stage}.yaml", stage, [*published, *SHORT, *overrides])
    torch.manual_seed(config.seed)
    stages[stage](config, processes, False, **more)
    folder: Path = config.logs / stage / "a"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RANKING_LOSSES))
def test_stage_1_learns_by_every_loss(name: str, alone: Processes, tiny_overrides: Overrides) -> None:
    settings = ["train.epochs=5", "train.clips_per_batch=4", "train.max_labels=8", "train.learning_rate=2e-3"]
    folder = run_stage(
        "pointwise", alone, tiny_overrides(f"loss.name={name}", f"data.validation={SOURCE_TRAIN}", *settings)
    )
    assert load_config(folder / "config.yaml", "pointwise").loss.name == name
    finished = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
    chance = chance_ndcg(torch.tensor([[0, 0, 1, 1, 2, 2]])).item()
    assert finished["best_metric"] > 0.95 > chance + 0.15


@pytest.mark.parametrize("name", ["smooth_l1", "lambdarank"])
@pytest.mark.parametrize("fill", [True, False])
def test_stage_1_takes_filled_and_unfilled_lists(
    name: str, fill: bool, alone: Processes, tiny_overrides: Overrides
) -> None:
    settings = [f"loss.name={name}", f"train.fill_lists={fill}", "train.max_labels=8"]
    folder = run_stage("pointwise", alone, tiny_overrides(*settings))
    assert (folder / "finished.json").is_file()


@pytest.mark.parametrize("name", list(PREFERENCE_LOSSES))
def test_stage_2_learns_by_every_loss(name: str, alone: Processes, tiny_overrides: Overrides) -> None:
    folder = run_stage("reward", alone, tiny_overrides("ranker=none", f"loss.name={name}"))
    assert load_config(folder / "config.yaml", "reward").loss.name == name


def test_an_unknown_loss_and_a_key_of_another_loss_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"loss\.name: found 'squared', wanted one of 'smooth_l1', 'ordinal', 'ranknet'"
    ):
        load_config(PRESET / "pointwise.yaml", "pointwise", ["loss.name=squared"])
    with pytest.raises(UserError, match=r"loss\.beta: is not a key of the chosen loss\.name"):
        load_config(PRESET / "pointwise.yaml", "pointwise", ["loss.beta=1", "loss.name=ranknet"])


def test_configs_of_earlier_versions_name_no_loss(tmp_path: Path) -> None:
    for stage, named in (("pointwise", "smooth_l1"), ("reward", "hinge")):
        lines = (PRESET / f"{stage}.yaml").read_text(encoding="utf-8").splitlines()
        old = [line for line in lines if not line.strip().startswith(("name:", "fill_lists:"))]
        (tmp_path / f"{stage}.yaml").write_text("\n".join(old), encoding="utf-8")
        config = load_config(tmp_path / f"{stage}.yaml", stage)
        assert config.loss.name == named


@pytest.fixture
def labels_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace both kinds of model by ones that read whole lists; record the labels per clip of each training batch."""
    seen: list[int] = []

    class ListRanker(RelevanceRanker):
        reads_whole_lists = True

        def forward(self, text: Tensor, frames: Tensor, **masks: Any) -> Tensor:
            if self.training:
                seen.extend(masks["text_mask"].any(-1).sum(1).tolist())
            return super().forward(text, frames, **masks)

    class ListOrderModel(PartialOrderModel):
        reads_whole_lists = True

        def forward(self, text: Tensor, frames: Tensor, order: Tensor, **masks: Any) -> Tensor:
            seen.extend(masks["text_mask"].any(-1).sum(1).tolist())
            return super().forward(text, frames, order, **masks)

    for module in (pointwise, reward, ppo):
        for kind in (ListRanker, ListOrderModel):
            monkeypatch.setattr(module, kind.__bases__[0].__name__, kind, raising=False)
    monkeypatch.setitem(KINDS, "RelevanceRanker", ListRanker)
    monkeypatch.setitem(KINDS, "PartialOrderModel", ListOrderModel)
    return seen


@pytest.mark.slow
def test_models_that_read_whole_lists_get_them_in_every_stage(
    labels_seen: list[int], alone: Processes, tiny_overrides: Overrides
) -> None:
    for stage, settings in (
        ("pointwise", ["train.max_labels=3"]),
        ("reward", ["train.pairs_per_clip=1"]),
        ("ppo", ["train.pairs_per_clip=1"]),
    ):
        labels_seen.clear()
        run_stage(stage, alone, tiny_overrides(*settings))
        assert set(labels_seen) == {LABELS}, stage


@pytest.mark.slow
def test_a_ranker_with_context_goes_through_every_stage(alone: Processes, tiny_overrides: Overrides) -> None:
    for stage, settings in (
        ("pointwise", ["model.context=prm", "train.max_labels=4"]),
        ("reward", []),
        ("ppo", ["train.pairs_per_clip=1"]),
    ):
        folder = run_stage(stage, alone, tiny_overrides(*settings))
    assert load_kind(folder / "best", RelevanceRanker).reads_whole_lists
    settings = ["name=ppo/a", f"logs={folder.parents[1]}", "device=cpu"]
    evaluate(load_config(PRESET / "evaluate.yaml", "evaluate", settings))
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]["clips"] == 17


@dataclass(frozen=True)
class Targets:
    """A rollout without pairs: the reward model's score of each label `[B, L]`."""

    batch: ClipBatch
    target: Tensor


class RegressOnWins:
    """A policy without critic or pairs: the ranker regresses each label's win rate under the reward model."""

    rollout = Targets
    shown = "loss"

    def __init__(self, actor: Learner[RelevanceRanker], reward_model: PartialOrderModel) -> None:
        self.learners: Mapping[str, Learner[Any]] = {"actor": actor}
        self.reward_model = reward_model.eval().requires_grad_(False)

    @classmethod
    def draw(cls, clips: Sequence[Clip], config: PPOConfig) -> Draw:
        return lambda rng: [whole_clips(clips)[clip] for clip in rng.permutation(len(clips))]

    @classmethod
    def open(
        cls,
        run: TrainingRun[PPOConfig],
        ranker: RelevanceRanker,
        reward: Reward,
        start_scores: StartScores,
        updates: int,
    ) -> Self:
        assert isinstance(reward, PartialOrderModel)
        settings = run.config.train.actor.model_copy(update={"learning_rate": 3e-3})
        return cls(Learner(ranker, settings, updates, run.config.compute, run.processes), reward)

    def roll_out(self, batch: ClipBatch) -> Targets:
        with torch.no_grad():
            vectors = self.reward_model.encoder(**batch.inputs())
            first, second = torch.cartesian_prod(torch.arange(LABELS), torch.arange(LABELS)).unbind(1)
            orders = torch.stack([first, second, first, second], 1).expand(len(batch), -1, -1)
            swapped = torch.stack([first, second, second, first], 1).expand(len(batch), -1, -1)
            wins = self.reward_model.score_orders(vectors, orders) > self.reward_model.score_orders(vectors, swapped)
        return Targets(batch, wins.view(len(batch), LABELS, LABELS).float().mean(-1))

    def learn(self, rollout: Targets, is_first: bool) -> Values:
        actor = self.learners["actor"]
        loss = (actor.parallel(**rollout.batch.inputs()) - rollout.target).square().mean()
        actor.backward(loss)
        actor.count(rollout.batch.ids)
        return {"loss": loss}


@pytest.mark.slow
def test_stage_3_takes_another_policy_without_critic_or_pairs(alone: Processes, tiny_overrides: Overrides) -> None:
    learned = ("train.epochs=6", "train.clips_per_batch=4", "train.max_labels=6")
    run_stage("pointwise", alone, tiny_overrides(*learned))
    run_stage("reward", alone, tiny_overrides(*learned[:2], "train.learning_rate=2e-3"))
    folder = run_stage("ppo", alone, tiny_overrides("train.epochs=25"), policy_type=RegressOnWins)
    finished = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
    assert finished["best_metric"] > 0.9, "the target's order is the opposite of the source's"
    assert not (folder / "checkpoints" / "last" / "critic").exists()
