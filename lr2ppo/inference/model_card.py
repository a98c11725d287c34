"""The README of an exported model: what it is, its metrics, and how to use it."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lr2ppo.evaluation.comparison import METRIC_TITLES, are_comparable, compare, describe_best, describe_intervals
from lr2ppo.evaluation.methods import in_markdown
from lr2ppo.evaluation.relevance import reliability_line
from lr2ppo.evaluation.results import evaluation_fault, read_by_split, read_table_rows, run_name, trained_on_note
from lr2ppo.files import write_text
from lr2ppo.inference.onnx import OnnxReport
from lr2ppo.inference.trained import Trained
from lr2ppo.models.weights import describe_model
from lr2ppo.runs.lookup import CONVERTED_FROM, RESULTS, explain_missing, read_finished, read_run, source_runs
from lr2ppo.runs.records import Calibration

SPLITS = {"test": "test split", "val": "validation split, which selected the weights"}


def write_card(trained: Trained, path: Path, out: Path, onnx: OnnxReport | None) -> None:
    """Write the model card of a model exported to `out`."""
    parts = [_what(trained), _metrics(trained), _data(trained), _encoders(trained), _use(trained, out)]
    if onnx is not None:
        parts.append(
            "## ONNX\n\n`ranker.onnx`: `text [clips, labels, tokens, text width]`, `text_mask`, `frames [clips, frame "
            f"tokens, image width]`, `frame_mask` to `scores [clips, labels]`; {onnx}."
        )
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)


def _what(trained: Trained) -> str:
    kind, shape = describe_model(trained.weights)
    return (
        f"# {in_markdown(trained.use.name)}\n\n"
        "Ranks labels by how relevant they are to a clip: a few video frames and a description. Trained with lr2ppo "
        "(*Multimodal Label Relevance Ranking via Reinforcement Learning*, ECCV 2024).\n\n"
        f"- Model: `{kind.__name__}`, head `{shape.head}`, width {shape.width}.\n"
        f"- Frames: at most {trained.use.frames} of a clip, in {trained.use.frame_order} order."
        + (
            ""
            if trained.reward is None
            else f"\n- Reward model, temperature {trained.use.temperature:.3g}: gives "
            "the probability that people put one label before another."
        )
        + _probabilities(trained.use.calibration)
        + (
            ""
            if trained.before is None
            else f"\n- `before/`: {_code(trained.before.use.name)}, the run it started from."
        )
    )


def _probabilities(calibration: Calibration | None) -> str:
    if calibration is None:
        return ""
    mean, below, above = calibration.mean, calibration.slope_below, calibration.slope_above
    return (
        "\n- Probability that a label is relevant, with a grade of at least 1: "
        f"`sigmoid({below:.4g} * log(sigmoid(z)) - {above:.4g} * log(sigmoid(-z)) {calibration.intercept:+.4g})` with "
        f"`z = (score {-mean:+.4g}) / {calibration.deviation:.4g}`, fitted on {calibration.labels} labels of "
        f"{calibration.clips} validation clips."
    )


def _metrics(trained: Trained) -> str:
    results = {} if trained.run is None else read_by_split(trained.run / RESULTS)
    if trained.run is None or not results:
        command = shlex.join(["sh", "ppo_eval.sh", trained.use.name])
        return f"## Metrics\n\nNot evaluated before export: {_code(command)}."
    parts = [
        part for split in SPLITS if split in results for part in _describe_split(trained.run, split, results[split])
    ]
    return "## Metrics\n\n" + "\n\n".join(filter(None, parts))


def _describe_split(run: Path, split: str, results: dict[str, Any]) -> tuple[str, ...]:
    fault = evaluation_fault(run, split)
    if fault is not None:
        command = shlex.join(["sh", "ppo_eval.sh", run_name(run), f"split={split}"])
        return (f"The run {fault}: {_code(command)}, then export it again.",)
    return "\n".join(_table(split, results)), _beside_sources(run, split)


def _table(split: str, results: dict[str, Any]) -> Iterator[str]:
    yield f"{results['clips']} clips of {_code(results['annotations'])}, the {SPLITS[split]}:\n"
    yield "| metric | mean | 95 % interval | chance |"
    yield "|---|---|---|---|"
    for name, title in METRIC_TITLES.items():
        found = results[name]
        yield (
            f"| {title} | {found['mean']:.3f} | {found['low']:.3f} to {found['high']:.3f} "
            f"| {results['chance'][name]:.3f} |"
        )
    if reliability := results.get("reliability"):
        line = reliability_line(reliability)
        yield f"\n{line[:1].upper() + line[1:]}."
    if note := trained_on_note(results):
        yield f"\n{in_markdown(note[:1].upper() + note[1:])}."


def _beside_sources(run: Path, split: str) -> str:
    """Say how a run compares with those it started from that were evaluated on the same clips; nothing if it cannot."""
    folders = [*(source for source in source_runs(run).values() if source is not None), run]
    evaluated = [folder for folder in folders if evaluation_fault(folder, split) is None]
    rows = read_table_rows([[folder] for folder in evaluated], split)
    rows = [row for row in rows if are_comparable(row, rows[-1])]
    return in_markdown(f"{describe_best(compare(rows))} With {describe_intervals(rows)}.")


def _data(trained: Trained) -> str:
    if trained.run is None:
        return "## Data\n\nUnknown: the model was exported without its data."
    config = read_run(trained.run)
    data = config["data"]
    converted_from = (read_finished(trained.run) or {}).get(CONVERTED_FROM)
    if converted_from is not None:
        return (
            f"## Data\n\nThe weights were converted from {_code(converted_from)}, and their training data are "
            f"unknown. They are evaluated on {_code(data['root'])}, preset {_code(config['preset'])}."
        )
    sources = "".join(
        f"\n- {key}: {_code(config[key])}" if found else f"\n- {key}: {in_markdown(explain_missing(trained.run, key))}"
        for key, found in source_runs(trained.run).items()
    )
    files = "; ".join(
        f"{title}: {_code(data[key])}"
        for key, title in {"train": "Training", "validation": "validation", "test": "test"}.items()
    )
    return (
        f"## Data\n\n- Folder: {_code(data['root'])}, preset {_code(config['preset'])}, seed {_code(config['seed'])}\n"
        f"- {files}{sources}"
    )


def _encoders(trained: Trained) -> str:
    encoders = trained.use.encoders
    if encoders is None:
        return "## Encoders\n\nThe features it was trained on name none: pass `text=` and `image=` to `load`."
    return (
        "## Encoders\n\nNot in this folder; `LabelRanker` looks for them at these paths and checks their "
        "fingerprints.\n\n"
        f"- Text: {_code(encoders.text_encoder)} at {_code(encoders.text_path)}, at most {encoders.max_text_tokens} "
        f"tokens, tokenizer {_code(encoders.tokenizer)} at {_code(encoders.tokenizer_path)}\n"
        f"- Image: {_code(encoders.image_encoder)} at {_code(encoders.image_path)}, frame tokens: "
        f"{encoders.frame_tokens}"
    )


def _use(trained: Trained, out: Path) -> str:
    # JSON quotes a text as Python does.
    folder = json.dumps(str(out), ensure_ascii=False)
    lines = [
        "from lr2ppo import LabelRanker",
        "",
        f"ranker = LabelRanker.load({folder})  # text=, tokenizer=, image=: other encoder paths",
        'ranker.rank("holiday.mp4", ["beach", "car", "night"], "two friends by the sea")',
    ]
    if trained.reward is not None:
        lines.append('ranker.compare("holiday.mp4", "beach", "car", "two friends by the sea")')
    python = "\n".join(lines)
    shell = f'lr2ppo rank {shlex.quote(str(out))} --frames holiday.mp4 --labels "beach,car,night"'
    return f"## Use\n\n```python\n{python}\n```\n\nor\n\n```sh\n{shell}\n```"


def _code(value: object) -> str:
    """Quote a value of a run, which may be someone else's, as inline code of one line."""
    # Without a text, its quotes would be those of the next one.
    line = " ".join(str(value).split()) or "(empty)"
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"
