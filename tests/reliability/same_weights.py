"""Compare the weights that two versions of the project train from the same configs, data and seed, byte by byte.

Trains the stages that both have, with both heads, from a checkout of COMMIT and from this working tree, through the
stage scripts.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lr2ppo.data import Clip, FeatureWriter, annotations, write_clips
from lr2ppo.runs.stages import STAGES, Stage

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, TOKENS, FRAMES, CLIPS = 16, 6, 3, 24
SHORT = ["train.epochs=2", "train.clips_per_batch=4", "train.evaluate_every=3", "device=cpu"]
WIDTHS = {"model.width": 16, "model.heads": 8, "model.text_tokens": TOKENS}
# Settings of each variant by stage; in stage 3, models have the shapes of the source runs.
VARIANTS: dict[str, dict[str, list[str]]] = {
    "pooled": {},
    "flatten": {
        **{stage: ["model.head=flatten", "model.attention=published"] for stage in ("pointwise", "reward")},
        "ppo": [
            "policy.name=partial_order",
            "ranker=pointwise/newest",
            "train.standard_errors=0",
            "train.batches_per_rollout=3",
            "train.dropout=0.1",
        ],
    },
    "random-frames": {stage: ["data.frame_order=random", "data.frames=2"] for stage in STAGES},
}


def write_data(root: Path) -> None:
    """Write a small data folder with random features, lists of 3 to 25 labels."""
    rng = np.random.default_rng(0)
    with FeatureWriter(root / "clean_feat.h5", {"tokens_per_frame": 1}) as store:
        source, target, validation, test = (
            [_clip(f"{domain}-{number}", rng, store) for number in range(CLIPS)]
            for domain in ("source", "target", "validation", "test")
        )
    write_clips(root / annotations.SOURCE_TRAIN, source)
    write_clips(root / annotations.TARGET_TRAIN, [Clip(clip.id, clip.labels) for clip in target])
    write_clips(root / annotations.TARGET_PAIRS, target)
    write_clips(root / annotations.VALIDATION, validation)
    write_clips(root / annotations.TEST, test)


def _clip(name: str, rng: np.random.Generator, store: FeatureWriter) -> Clip:
    labels = int(rng.integers(3, 26))
    text = [rng.normal(size=(rng.integers(2, TOKENS + 1), WIDTH)).astype(np.float32) for _ in range(labels)]
    store.write(name, text, rng.normal(size=(FRAMES, WIDTH)).astype(np.float32))
    grades = np.resize(rng.permutation(3), labels)
    pairs = rng.permutation(np.argwhere(grades[:, None] > grades[None, :]))[:20]
    return Clip(name, tuple(f"label {number}" for number in range(labels)), grades, pairs=pairs)


def train(tree: Path, stages: Sequence[Stage], data: Path, logs: Path, processes: int) -> dict[str, str]:
    """Train every variant with the code of one tree; return the hash of each weights file by its path in `logs`."""
    environment = os.environ | {"PRESET": "mini", "NPROC": str(processes), "PYTHON": sys.executable}
    environment |= {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    for name, settings in VARIANTS.items():
        for stage in stages:
            has_model = "model" in stage.config.model_fields
            sizes = [f"{key}={value}" for key, value in WIDTHS.items()] if has_model else []
            sources = [f"{key}={name}" for key in stage.sources]
            arguments = [f"data.root={data}", f"logs={logs}", "data.frames=3", *SHORT, *sizes, *sources]
            command = ["sh", stage.script, name, *arguments, *settings.get(stage.name, [])]
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{' '.join(command)} in {tree} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return {
        str(path.relative_to(logs)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(logs.rglob("*.safetensors"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: .venv/bin/python -m tests.reliability.same_weights HEAD~3"
    )
    parser.add_argument("commit", help="the version to compare this working tree with")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run (default 1)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lr2ppo-same-weights-") as folder:
        place = Path(folder)
        archive = place / "other.tar"
        git = ["git", "-C", str(REPOSITORY), "archive", f"--output={archive}", arguments.commit]
        subprocess.run(git, check=True)
        (place / "other").mkdir()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(place / "other")], check=True)
        write_data(place / "data")
        both = [stage for stage in STAGES.values() if (place / "other" / stage.script).is_file()]
        here = train(REPOSITORY, both, place / "data", place / "logs-here", arguments.processes)
        there = train(place / "other", both, place / "data", place / "logs-other", arguments.processes)
    differing = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
    for name in sorted(here):
        print(f"{'differs' if name in differing else 'same   '}  {here[name][:12]}  {name}")
    print(f"{len(here) - len(differing)} of {len(here)} files have the same bytes as in {arguments.commit}")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
