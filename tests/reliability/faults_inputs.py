"""Common mistakes in commands, and input that cannot be trained on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lr2ppo.data import annotations
from lr2ppo.runs.stages import STAGES
from tests.reliability.faults_kills import Series, Tried
from tests.reliability.faults_world import Ended, Outcome, Workshop, fault_of_refusal

SECONDS_TO_REFUSE = 10
# Registered for Zstandard, which h5py does not bring.
UNKNOWN_FILTER = 32015
SOURCE, PAIRS = annotations.SOURCE_TRAIN, annotations.TARGET_PAIRS


def try_mistakes(workshop: Workshop) -> Tried:
    """Try common first mistakes with each stage's script."""
    for stage in STAGES:
        series = Series(workshop, stage, 1)
        series.make_whole()
        commands = {
            "without data": (["first", "data.root=nowhere"], "no such"),
            "with a misspelt key": (["first", "train.epoch=3"], "did you mean train.epochs?"),
            "with a finished run's name": (["whole-1"], "exists and is finished"),
        }
        for usual, *_ in list(STAGES[stage].sources.values())[:1]:
            commands["without the earlier stage"] = (["first", "logs=empty"], f"sh {STAGES[usual].script} NAME")
        for what, ((name, *more), message) in commands.items():
            yield f"a script {what}", _refusal(workshop.run(stage, name, *more), message, SECONDS_TO_REFUSE)


def try_inputs(workshop: Workshop) -> Tried:
    """Give each stage annotations, features and configs that cannot be used."""
    for place, (what, (stage, spoil, message)) in enumerate(SPOILT.items()):
        data = workshop.root / "data" / f"spoilt-{place}"
        shutil.copytree(workshop.data, data, ignore=shutil.ignore_patterns(".*"))
        spoil(data)
        more = [f"data.root={data}", *(["ranker=none"] if stage == "reward" else [])]
        yield what, _refusal(workshop.run(stage, "spoilt", *more), message)
        if what == NOT_FINITE:
            more += ["data.strict=false", "train.epochs=2"]
            yield (
                f"{what}, data.strict=false",
                _continued(workshop.run(stage, "left-out", *more), "left out for faults"),
            )
    for what, (text, message) in CONFIGS.items():
        folder = workshop.root / "configs" / "spoilt"
        folder.mkdir(exist_ok=True)
        whole = (workshop.root / "configs" / "mini" / "pointwise.yaml").read_text(encoding="utf-8")
        (folder / "pointwise.yaml").write_text(whole.replace(SEED, text, 1), encoding="utf-8")
        yield what, _refusal(workshop.run("pointwise", "spoilt", PRESET="spoilt"), message)


def try_nonfinite(workshop: Workshop) -> Tried:
    """Give stages features that are finite, but too large to compute with."""
    data = workshop.root / "data" / "large"
    shutil.copytree(workshop.data, data, ignore=shutil.ignore_patterns(".*"))
    for clip in ("source-0", "target-0"):
        _change_features(data, clip, lambda values: values * np.float32(1e30))
    for stage in STAGES:
        clip = "source-0" if stage == "pointwise" else "target-0"
        for processes in (1, 2) if stage == "pointwise" else (1,):
            series = Series(workshop, stage, processes)
            series.make_earlier()
            # Few enough that the message names all clips of a step.
            name, more = f"large-{processes}", [f"data.root={data}", "train.epochs=2", "train.clips_per_batch=2"]
            ended = series.start(name, *more).end()
            why = fault_of_refusal(ended, clip) or ("" if "step " in ended.printed else "named no step")
            yield f"a loss that is not finite: {stage}", Outcome("lost" if why else "refused", ended.seconds, why)
            ended = series.start(f"{name}-skip", *more, "safety.on_nonfinite=skip").end()
            yield "the same, safety.on_nonfinite=skip", _continued(ended, "finished in")


def _refusal(ended: Ended, message: str, seconds: float = float("inf")) -> Outcome:
    why = fault_of_refusal(ended, message)
    if not why and ended.seconds > seconds:
        why = f"took {ended.seconds:.1f} s to report it"
    return Outcome("lost" if why else "refused", ended.seconds, why)


def _continued(ended: Ended, message: str) -> Outcome:
    fine = ended.code == 0 and message in ended.printed
    why = "" if fine else f"ended with {ended.code}; it printed: {ended.printed[-600:]}"
    return Outcome("continued" if fine else "lost", ended.seconds, why)


def _change(file: str, change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    """Return a function that changes an annotation file's clips in place."""

    def spoil(data: Path) -> None:
        clips = json.loads((data / file).read_text(encoding="utf-8"))
        change(clips)
        (data / file).write_text(json.dumps(clips), encoding="utf-8")

    return spoil


def _change_features(data: Path, clip: str, change: Callable[[Any], Any]) -> None:
    with h5py.File(data / "clean_feat.h5", "a") as file:
        for part in ("text_emb", "img_emb"):
            values = change(file[clip][part][()])
            del file[clip][part]
            file[clip][part] = values


def _set_nan(values: Any) -> Any:
    values[..., 0] = np.nan
    return values


def _with_unknown_filter(data: Path) -> None:
    """Store a clip's text as a program with a filter that is not installed here would."""
    with h5py.File(data / "clean_feat.h5", "a") as file:
        values = np.ascontiguousarray(file["source-5/text_emb"][()], np.float32)
        del file["source-5/text_emb"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(values.shape)
        settings.set_filter(UNKNOWN_FILTER, h5py.h5z.FLAG_OPTIONAL)
        shape, number = h5py.h5s.create_simple(values.shape), h5py.h5t.NATIVE_FLOAT
        dataset = h5py.h5d.create(file["source-5"].id, b"text_emb", number, shape, settings)
        dataset.write_direct_chunk((0,) * values.ndim, values.tobytes())


def _without_features(data: Path) -> None:
    with h5py.File(data / "clean_feat.h5", "a") as file:
        del file["source-5"]


def _cut_features(data: Path) -> None:
    path = data / "clean_feat.h5"
    os.truncate(path, path.stat().st_size // 2)


NOT_FINITE = "a feature that is not a number"
SPOILT: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "annotations that are not JSON": ("pointwise", lambda data: (data / SOURCE).write_text("[{"), "is not JSON"),
    "annotations that are no list": ("pointwise", lambda data: (data / SOURCE).write_text("{}"), "wanted a JSON list"),
    "two clips of one id": ("pointwise", _change(SOURCE, lambda clips: clips.append(clips[3])), "the same id"),
    "a grade of 50": ("pointwise", _change(SOURCE, lambda clips: clips[3]["tags"][0].update(target=50)), "found 50"),
    "a clip without labels": ("pointwise", _change(SOURCE, lambda clips: clips[3].update(tags=[])), "found no labels"),
    "a pair out of range": ("reward", _change(PAIRS, lambda clips: clips[3].update(index=[[0, 99]])), "found [0, 99]"),
    "a pair of a label with itself": (
        "reward",
        _change(PAIRS, lambda clips: clips[3].update(index=[[2, 2]])),
        "[2, 2]",
    ),
    "a clip without features": ("pointwise", _without_features, "source-5: has no features"),
    "features of another width": (
        "pointwise",
        lambda data: _change_features(data, "source-5", lambda values: values[..., :8]),
        "found feature widths (8, 8)",
    ),
    NOT_FINITE: ("pointwise", lambda data: _change_features(data, "source-5", _set_nan), "are not finite"),
    "features in a filter that is not installed": ("pointwise", _with_unknown_filter, "source-5"),
    "a feature file cut short": ("pointwise", _cut_features, "clean_feat.h5"),
    "text where features should be": (
        "pointwise",
        lambda data: (data / "clean_feat.h5").write_text("features", encoding="utf-8"),
        "clean_feat.h5",
    ),
}
# What takes the place of a line of the config, and the message.
SEED = "seed: 7\n"
CONFIGS = {
    "a config that is not YAML": (f"{SEED}  : [\n", "is not YAML"),
    "a config with a value of another type": ("seed: many\n", "seed: found 'many'"),
    "a config with an unknown key": (f"{SEED}speed: 3\n", "speed: unknown key; did you mean seed?"),
}
