"""The command `python -m lr2ppo.inference.ranker`: one clip's labels as a table, or a whole annotation file."""

import argparse
import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lr2ppo.errors import UserError, reports_user_errors
from lr2ppo.inference.file import rank_file
from lr2ppo.inference.ranker import LabelRanker, RankedLabel, check_labels

BAR = 24


def format_ranking(ranked: Sequence[RankedLabel], full: str = "█") -> str:
    """A table of rank, label, score and a bar that is longest for the best and shortest for the worst label."""
    shown = [_printable(each.label) for each in ranked]
    width = max(_columns(label) for label in ["label", *shown])
    best, worst = ranked[0].score, ranked[-1].score
    lines = [f"rank  label{' ' * (width - 5)}      score"]
    for rank, (label, each) in enumerate(zip(shown, ranked, strict=True), start=1):
        share = (each.score - worst) / (best - worst) if best > worst else 1.0
        bar = full * (1 + round(share * (BAR - 1)))
        lines.append(f"{rank:>4}  {label}{' ' * (width - _columns(label))}  {each.score:>9.4f}  {bar}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """A text that does nothing to a terminal but stand in its line."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "FW")
        for character in text
    )


def add_ranker_arguments(parser: argparse.ArgumentParser) -> None:
    """What `open_ranker` reads."""
    parser.add_argument("run", metavar="RUN", help="NAME, STAGE/NAME or a path of a run, or an exported folder")
    for encoder, what in (("text", "text encoder"), ("tokenizer", "tokenizer"), ("image", "image encoder")):
        parser.add_argument(
            f"--{encoder}", type=Path, help=f"where the {what} is (default: where it was at extraction)"
        )
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder of the runs (default logs)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def open_ranker(arguments: argparse.Namespace) -> LabelRanker:
    """The ranker that a command line names, with its warning said."""
    ranker = LabelRanker.load(
        arguments.run,
        logs=arguments.logs,
        text=arguments.text,
        tokenizer=arguments.tokenizer,
        image=arguments.image,
        device=arguments.device,
    )
    if ranker.warning:
        print(f"warning: {ranker.warning}", file=sys.stderr)
    return ranker


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="lr2ppo rank",
        description="Rank the labels of a clip, or of every clip of an annotation file, by a trained model.",
        epilog='example: python -m lr2ppo rank ppo/quickstart --frames holiday.mp4 --labels "beach,car,night" '
        '--description "two friends by the sea". Whole files: python -m lr2ppo rank ppo/quickstart --annotations '
        "data/mini/test_data.json --out ranked.jsonl.",
    )
    parser.add_argument(
        "--frames", nargs="+", metavar="PATH", help="a folder of images, a video, or images in time order"
    )
    parser.add_argument("--labels", help="the labels to rank, with commas between them")
    parser.add_argument("--description", default="", help="what the clip is about")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="rank every clip of a file in LRMovieNet's layout"
    )
    parser.add_argument(
        "--frames-root", type=Path, help="folder that its image paths are relative to (default: its own)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="JSON lines to write or continue")
    add_ranker_arguments(parser)
    return parser.parse_args()


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Raises `UserError` for what can be told before any model is loaded."""
    one = {"--frames": arguments.frames, "--labels": arguments.labels}
    whole = {"--annotations": arguments.annotations, "--out": arguments.out}
    given = [name for name, value in [*one.items(), *whole.items()] if value is not None]
    if given not in (list(one), list(whole)):
        found = " and ".join(given) or "neither"
        raise UserError(f"found {found}; wanted --frames and --labels of one clip, or --annotations and --out")
    if arguments.labels is not None:
        check_labels(_split(arguments.labels))
        gone = [path for path in arguments.frames if not Path(path).exists()]
        if gone:
            raise UserError(f"--frames: found no file or folder {gone[0]}; give a folder of images, a video or images")


def _split(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",")]


@reports_user_errors
def main() -> None:
    arguments = _parse_arguments()
    _check_arguments(arguments)
    ranker = open_ranker(arguments)
    if arguments.annotations is not None:
        frames_root = arguments.frames_root or arguments.annotations.parent
        written, there = rank_file(ranker, arguments.annotations, frames_root, arguments.out)
        print(f"{arguments.out}: wrote {written} clips, {there} were there already")
        return
    frames = arguments.frames[0] if len(arguments.frames) == 1 else arguments.frames
    ranked = ranker.rank(frames, _split(arguments.labels), arguments.description)
    if arguments.json:
        print(json.dumps({"run": ranker.name, "ranked": [asdict(each) for each in ranked]}, ensure_ascii=False))
        return
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(format_ranking(ranked, "█" if is_unicode else "#"))


if __name__ == "__main__":
    main()
