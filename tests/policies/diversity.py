"""What a reward that no pair can express adds: `.venv/bin/python -m tests.policies.diversity SEED...`.

Whoever browses a clip's labels wants the first ones to differ: of two labels of one family (boat, ship) the second is
worth half. The reward is that, as alpha-NDCG of a list (Clarke et al. 2008), on 100 graded clips; beside it the plain
NDCG by the same grades. Families are not in the data: a ranker has to learn them from rewards. At least two seeds, each
with its own world and clips: `sh scripts/mini_data.sh SEED data/mini-SEED` makes them. Finished runs are found again.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from lr2ppo.config.load import load_config
from lr2ppo.data.annotations import TEST, VALIDATION, Clip, graded
from lr2ppo.data.dataset import open_dataset, open_store
from lr2ppo.distributed.processes import Processes
from lr2ppo.evaluation.relevance import relevance_probabilities
from lr2ppo.evaluation.scoring import Scores, score_clips
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.dcg import all_discounts, gains
from lr2ppo.runs.lookup import read_calibration, read_finished
from lr2ppo.runs.records import Calibration
from lr2ppo.stages import finetune, pointwise, ppo

PRESET = Path("configs/mini")
LOGS = Path("logs/diversity")
ANNOTATED = "first_second_data_pair/first_second_data_pair_100x10.json"
FAMILIES = (
    "boat ship car wheel anchor rope",
    "bell drum guitar piano",
    "chair table mirror pillow lamp candle clock",
    "bridge door fence house tower ladder",
    "apple cloud feather flower leaf moon star",
    "hammer knife arrow bottle basket book crown flag hat kite",
)
FAMILY = {noun: number for number, nouns in enumerate(FAMILIES) for noun in nouns.split()}
ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
# What a further label of a family is worth: this share of the one before.
REPEATED = 0.5

# Settings of stage 3: whole lists, since a family may be anywhere, and the weights of the last step.
LISTS = (
    "policy.name=grpo", "policy.labels_per_list=20", "policy.lists_per_clip=16", "policy.reward=grades", "reward=none",
    f"data.train={ANNOTATED}", "train.visits_per_epoch=3", "train.epochs=24", "train.standard_errors=-1000",
)  # fmt: skip


def alpha_ndcg(gain: NDArray[np.float64], families: NDArray[np.int64], order: Sequence[int]) -> float:
    """The alpha-NDCG of an order of a clip's labels: gain, families [labels]."""
    best = _diverse_dcg(gain, families, greedy_order(gain, families))
    return _diverse_dcg(gain, families, order) / best if best > 0 else 1.0


def greedy_order(gain: NDArray[np.float64], families: NDArray[np.int64]) -> list[int]:
    """The order that takes the label of the highest gain left, a family's further labels counting less each time."""
    worth, order = gain.copy(), []
    left = np.ones(len(gain), dtype=bool)
    for _ in gain:
        label = int(np.where(left, worth, -np.inf).argmax())
        order.append(label)
        left[label] = False
        if gain[label] > 0:
            worth[families == families[label]] *= REPEATED
    return order


def _diverse_dcg(gain: NDArray[np.float64], families: NDArray[np.int64], order: Sequence[int]) -> float:
    seen: dict[int, int] = {}
    total = 0.0
    for label, discount in zip(order, all_discounts(torch.from_numpy(gain)).tolist(), strict=True):
        family = int(families[label])
        total += gain[label] * REPEATED ** seen.get(family, 0) * discount
        seen[family] = seen.get(family, 0) + (gain[label] > 0)
    return total


def gains_and_families(clip: Clip) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    grades = torch.from_numpy(graded(clip)).double()
    return gains(grades, torch.ones_like(grades)).numpy(), np.array([FAMILY[label] for label in clip.labels])


def diversity(clip: Clip, labels: Sequence[str]) -> float:
    """The reward of stage 3: the alpha-NDCG of a list of a graded clip's labels."""
    gain, families = gains_and_families(clip)
    return alpha_ndcg(gain, families, [clip.labels.index(label) for label in labels])


def train(seed: int, context: str) -> dict[str, Path]:
    """Train stage 1, stage 2a and, with two rewards, stage 3 on one seed; return the runs of the last two."""
    source = f"{context}-{seed}"

    def run(stage: str, name: str, start: Callable[[Any], None], *settings: str) -> Path:
        own = [f"data.root=data/mini-{seed}", f"logs={LOGS}", f"name={name}", f"seed={seed}", *settings]
        config = load_config(PRESET / f"{stage}.yaml", stage, own)
        folder = LOGS / stage / name
        if read_finished(folder) is None:
            torch.manual_seed(config.seed)
            start(config)
        return folder

    run("pointwise", source, partial(pointwise.train, processes=ALONE, fresh=False), f"model.context={context}")
    annotated = [f"data.train={ANNOTATED}", f"ranker={source}"]
    reads = "pointwise" if context == "none" else context
    rankers = {
        f"fine-tuned, {reads}": run(
            "finetune", source, partial(finetune.train, processes=ALONE, fresh=False), *annotated
        )
    }
    for row, reward in (("GRPO by NDCG", None), ("GRPO by alpha-NDCG", diversity)):
        name = f"{source}-{'ndcg' if reward is None else 'diversity'}"
        improve = partial(ppo.train, processes=ALONE, fresh=False, reward=reward)
        rankers[f"{row}, {reads}"] = run("ppo", name, improve, *LISTS, f"ranker=finetune/{source}")
    return rankers


def measure(clips: Sequence[Clip], scores: Sequence[Scores], calibration: Calibration | None) -> float:
    """The mean alpha-NDCG of clips in the order of their scores.

    With a calibration it is that of the greedy order by probabilities of relevance, which has to know the families.
    """
    found = []
    for clip, own in zip(clips, scores, strict=True):
        gain, families = gains_and_families(clip)
        if calibration is None:
            order = np.argsort(-own, kind="stable").tolist()
        else:
            order = greedy_order(relevance_probabilities(calibration, own), families)
        found.append(alpha_ndcg(gain, families, order))
    return float(np.mean(found))


def measure_rankers(seed: int, rankers: Mapping[str, Path], split: str) -> dict[str, float]:
    """The mean alpha-NDCG of every row on the clips of a split, from the runs of a seed."""
    config = load_config(PRESET / "ppo.yaml", "ppo", [f"data.root=data/mini-{seed}", "name=a"]).data
    store = open_store(config)
    rows = {}
    for row, folder in rankers.items():
        ranker = load_kind(folder / "best", RelevanceRanker).eval()
        dataset = open_dataset(config, split, "grades", store, ranker.encoder.config)
        scores = score_clips(ranker, dataset, ALONE, 16)
        rows[row] = measure(dataset.clips, scores, None)
        rows[f"{row}, re-ranked by families"] = measure(dataset.clips, scores, read_calibration(folder))
    return rows


def main(seeds: Sequence[int]) -> None:
    """Print the mean of each row over the seeds, and its difference to the first with a 95 % t interval."""
    trained = {seed: train(seed, "none") | train(seed, "setrank") for seed in seeds}
    for split in (VALIDATION, TEST):
        found = [measure_rankers(seed, rankers, split) for seed, rankers in trained.items()]
        first = next(iter(found[0]))
        print(f"\n{split}: alpha-NDCG, mean of {len(seeds)} seeds, and its difference to {first!r}")
        for row in found[0]:
            values = np.array([own[row] for own in found])
            line = f"{row:54s} {values.mean():.3f}"
            if row != first:
                differences = values - [own[first] for own in found]
                low, high = stats.t.interval(0.95, len(seeds) - 1, differences.mean(), stats.sem(differences))
                line += f"  {differences.mean():+.3f} [{low:+.3f} {high:+.3f}]"
            print(line)


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]])
