"""Trained runs of all stages on a few generated clips, with untrained encoders."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr2ppo import Query
from lr2ppo.cli import main
from lr2ppo.config.load import load_config
from lr2ppo.data.captions import read_captions
from lr2ppo.data.mini import SIZES, write_mini
from lr2ppo.distributed.processes import Processes
from lr2ppo.encoders import pretrain
from lr2ppo.files import read_json, write_json
from lr2ppo.stages.evaluate import evaluate
from tests.conftest import REPOSITORY
from tests.helpers.parallel_training import TRAIN

MINI = REPOSITORY / "configs" / "mini"
# More frames than a clip has, because the published head repeats frames.
FLATTEN = ["model.head=flatten", "model.attention=published", "model.text_tokens=38", "data.frames=7"]
QUICKLY = ["train.epochs=3", "train.actor.learning_rate=0.01", "train.actor.warmup=0"]
# The preset's seed, and others.
SEEDS = range(7, 17)


@dataclass(frozen=True)
class TrainedWorld:
    """Folders `data`, `encoders` (roberta and vit, and in others/ the same with other weights) and `logs`."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def encoders(self) -> Path:
        return self.root / "encoders"

    @classmethod
    def make(cls, root: Path) -> "TrainedWorld":
        """Train and evaluate runs `pointwise/one`, `pointwise/flatten`, `reward/one` and `ppo/one` for a few steps."""
        world = cls(root)
        write_mini(world.data, seed=5, sizes=dict.fromkeys(SIZES, 6) | {"pretraining": 40})
        for folder, seed in ((world.encoders, 0), (world.encoders / "others", 1)):
            world._make_encoders(folder, seed)
        world.extract()
        world.train("pointwise", "one")
        world.train("pointwise", "flatten", *FLATTEN)
        world.train("reward", "one", "ranker=one")
        world._train_until_better(
            "ppo", "one", "ranker=pointwise/one", "reward=one", "train.batches_per_rollout=1", *QUICKLY
        )
        for run in ("pointwise/one", "pointwise/flatten", "reward/one", "ppo/one"):
            overrides = [f"name={run}", f"logs={world.logs}", "device=cpu", "workers=0", "bootstrap_samples=50"]
            evaluate(load_config(MINI / "evaluate.yaml", "evaluate", overrides))
        return world

    def extract(self, *more: str) -> None:
        """Run the extract command; `more` come last, and so replace the same arguments."""
        encoders = ("--text", str(self.encoders / "roberta"), "--image", str(self.encoders / "vit"))
        main(["extract", "--data", str(self.data), *encoders, "--frame-tokens", "patches", *more, "--device", "cpu"])

    def train(self, stage: str, name: str, *more: str, fresh: bool = False) -> None:
        common = [f"logs={self.logs}", f"data.root={self.data}", f"name={name}", "device=cpu", "data.workers=0"]
        sizes = ["train.epochs=1", "train.clips_per_batch=3", "train.evaluate_every=1"]
        sizes += [] if stage == "ppo" else ["model.width=32", "model.heads=8"]
        config = load_config(MINI / f"{stage}.yaml", stage, [*common, *sizes, *more])
        torch.manual_seed(config.seed)
        TRAIN[stage](config, Processes(0, 1, torch.device("cpu")), fresh)

    def _train_until_better(self, stage: str, name: str, *more: str) -> None:
        """Train with the first seed that improves the ranker; otherwise a run keeps its initial weights.

        This seed depends on the versions of torch and transformers.
        """
        finished = self.logs / stage / name / "finished.json"
        for seed in SEEDS:
            self.train(stage, name, f"seed={seed}", *more, fresh=True)
            if json.loads(finished.read_text(encoding="utf-8"))["best_step"] > 0:
                return
        raise AssertionError(f"{stage}/{name} did not improve with any of {len(SEEDS)} seeds")

    def calibrated(self, logs: Path, calibration: object) -> Path:
        """Copy the runs to `logs`, and give the rankers this calibration; return `logs`."""
        shutil.copytree(self.logs, logs)
        for run in ("pointwise/one", "pointwise/flatten", "ppo/one"):
            path = logs / run / "finished.json"
            write_json(path, read_json(path) | {"calibration": calibration})
        return logs

    def cases(self, run: str) -> list[dict[str, Any]]:
        """Read the cases that evaluation wrote for the test clips."""
        cases: list[dict[str, Any]] = json.loads((self.logs / run / "cases.json").read_text(encoding="utf-8"))["test"]
        return cases

    def queries(self) -> list[Query]:
        """Return the test clips as raw queries."""
        clips = json.loads((self.data / "test_data.json").read_text(encoding="utf-8"))
        return [
            Query(
                [self.data / image for image in clip["image"]],
                [tag["tag"] for tag in clip["tags"]],
                clip["description"],
            )
            for clip in clips
        ]

    def _make_encoders(self, folder: Path, seed: int) -> None:
        torch.manual_seed(seed)
        captions = read_captions(self.data, 100, np.random.default_rng(0))
        tokenizer = pretrain.build_tokenizer([*captions.captions, *captions.texts, *captions.words], 500)
        text = pretrain.build_text_model(len(tokenizer), width=32, layers=1, heads=2, max_tokens=40)
        vit, shape = pretrain.build_image_model(width=32, layers=1, heads=2, size=64, patch=8)
        pretrain.save(folder, text, tokenizer, vit, shape)
