"""Benchmark a stage's real run on generated features: what its steps take beside the bare step, and what the rest."""

import contextlib
import gc
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import cast

import h5py
import numpy as np
from tqdm import tqdm

from lr2ppo.benchmark.measure import measure
from lr2ppo.benchmark.steps import Shape, TimedConfig
from lr2ppo.config.schema import ModelConfig, PPOConfig
from lr2ppo.data.annotations import Clip, write_clips
from lr2ppo.distributed.processes import Processes
from lr2ppo.files import read_json
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import new_model
from lr2ppo.runs.lookup import FINISHED
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.converted import write_converted_run

FEATURES, TRAIN, VALIDATION = "features.h5", "train.json", "validation.json"
VALIDATION_CLIPS = 20
# Runs with random weights that stages 2 and 3 start from.
START = "start"


def measure_run(
    config: TimedConfig,
    trunk: ModelConfig,
    processes: Processes,
    *,
    clips: int,
    labels: int,
    tokens: int | None,
    steps: int,
) -> dict[str, object]:
    """Train the config's stage for about `steps` steps on `clips` generated clips, and time a bare step beside it.

    Every process must call it. Returns the figures of one JSON line.
    """
    bare = measure(config, trunk, processes, labels=labels, tokens=tokens, plain=False, steps=5, trace=None)
    gc.collect()
    shape = Shape.of(config, trunk, labels=labels, tokens=tokens)
    with _shared_folder(processes) as folder:
        if processes.is_main:
            write_folder(folder, clips, shape)
            widths = {"text_width": shape.text_width, "image_width": shape.image_width}
            write_sources(folder, config.preset, trunk.model_copy(update={"frames": shape.frames, **widths}))
        processes.barrier()
        config = _for_folder(_with_shape(config, trunk), folder, clips, steps, processes.world_size)
        with contextlib.redirect_stdout(sys.stderr):
            import_module(STAGES[config.stage].module).train(config, processes, fresh=False)
        found = read_json(folder / "logs" / config.stage / "run" / FINISHED)
        processes.barrier()
    seconds, bare_seconds = found["seconds_per_step"], cast(float, bare["seconds_per_step"])
    if isinstance(config, PPOConfig):
        seconds /= config.train.batches_per_rollout * config.train.passes
    shared = ("stage", "preset", "precision", "processes", "clips", "pairs_per_clip", "labels_per_clip", "tokens")
    return {
        **{key: bare[key] for key in shared},
        "keep": config.data.keep,
        "run_clips": clips,
        "steps": found["steps"],
        "seconds_per_step": round(seconds, 5),
        "bare_seconds_per_step": bare_seconds,
        "over_bare": round(seconds / bare_seconds, 3),
        "floor_seconds": bare["floor_seconds"],
        "seconds": found["seconds"],
        "seconds_spent": found["spent"],
        "peak_memory_gib": found["peak_memory_gib"],
    }


def write_folder(folder: Path, clips: int, shape: Shape) -> None:
    """Write annotations and random features of clips that all have the same sizes, for training and validation."""
    rng = np.random.default_rng(0)
    names = [f"clip-{number:06}" for number in range(clips + VALIDATION_CLIPS)]
    with h5py.File(folder / FEATURES, "w") as file:
        for name in tqdm(names, desc="writing features", unit="clip", leave=False, disable=None):
            text = rng.standard_normal((shape.labels, shape.tokens, shape.text_width), dtype=np.float32)
            file[f"{name}/text_emb"] = text
            file[f"{name}/img_emb"] = rng.standard_normal((1, shape.frames, shape.image_width), dtype=np.float32)
    made = [_annotate(name, shape, rng) for name in names]
    write_clips(folder / TRAIN, made[:clips])
    write_clips(folder / VALIDATION, made[clips:])


def write_sources(folder: Path, preset: str, trunk: ModelConfig) -> None:
    """Write a ranker's and a reward model's run with random weights."""
    for kind, stage in ((RelevanceRanker, "pointwise"), (PartialOrderModel, "reward")):
        out = folder / "logs" / stage / START
        write_converted_run(new_model(kind, trunk), Path("random weights"), out, preset)


def _annotate(name: str, shape: Shape, rng: np.random.Generator) -> Clip:
    grades = np.resize(np.arange(3), shape.labels)
    better, worse = np.nonzero(grades[:, None] > grades)
    chosen = rng.permutation(len(better))[: shape.pairs]
    labels = tuple(f"label {number}" for number in range(shape.labels))
    return Clip(name, labels, grades, pairs=np.stack([better[chosen], worse[chosen]], axis=1))


def _with_shape(config: TimedConfig, trunk: ModelConfig) -> TimedConfig:
    """Return the config with a model of the trunk's shape."""
    if isinstance(config, PPOConfig):
        return config
    shape = trunk.model_dump(exclude={"residual", "context"})
    return config.model_copy(update={"model": config.model.model_copy(update=shape)})


def _for_folder(config: TimedConfig, folder: Path, clips: int, steps: int, processes: int) -> TimedConfig:
    """Return the config of a run in the folder with about so many steps."""
    data = {"root": folder, "features": (FEATURES,), "train": TRAIN, "validation": VALIDATION}
    batches = -(-clips // (config.train.clips_per_batch * processes))
    changes: dict[str, object] = {"name": "run", "logs": folder / "logs", "data": config.data.model_copy(update=data)}
    if isinstance(config, PPOConfig):
        batches *= config.train.visits_per_epoch
        changes |= {"ranker": START, "reward": START}
        steps *= config.train.batches_per_rollout
    elif "ranker" in type(config).model_fields:
        changes |= {"ranker": START}
    train = config.train.model_copy(update={"epochs": max(1, round(steps / batches))})
    return config.model_copy(update={**changes, "train": train})


@contextlib.contextmanager
def _shared_folder(processes: Processes) -> Iterator[Path]:
    """Within the context, all processes share a folder, which is then removed."""
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory()) if processes.is_main else ""
        yield Path(processes.gather(own)[0])
