"""Rank the labels of a clip, or of every clip of an annotation file, with a trained model."""

import argparse
import json
import sys
from pathlib import Path

from lr2ppo.commands.arguments import add_ranker_arguments, open_ranker, require_runs
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.files import check_output
from lr2ppo.terminal import say

EXAMPLE = """lr2ppo rank ppo/quickstart --frames holiday.mp4 --labels "beach,car,night" \\
    --description "two friends by the sea"
whole files: lr2ppo rank ppo/quickstart --annotations data/mini/test_data.json --out ranked.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--frames", nargs="+", metavar="PATH", help="a folder of images, a video, or images in time order"
    )
    parser.add_argument("--labels", help="the labels to rank, separated by commas")
    parser.add_argument("--description", default="", help="what the clip is about")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="rank every clip of a file in LRMovieNet's layout"
    )
    parser.add_argument(
        "--frames-root", type=Path, help="folder that its image paths are relative to (default: the file's)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="JSON lines to write or continue")
    add_ranker_arguments(parser)


def check(arguments: argparse.Namespace) -> None:
    """Raise `UserError` for mistakes that show before a model is loaded."""
    single = {"--frames": arguments.frames, "--labels": arguments.labels}
    file = {"--annotations": arguments.annotations, "--out": arguments.out}
    given = [name for name, value in [*single.items(), *file.items()] if value is not None]
    if given not in (list(single), list(file)):
        found = " and ".join(given) or "neither"
        raise UserError(f"found {found}; wanted --frames and --labels of one clip, or --annotations and --out")
    if arguments.labels is not None:
        from lr2ppo.inference.labels import check_labels, split_labels

        check_labels(split_labels(arguments.labels))
        missing = [path for path in arguments.frames if not Path(path).exists()]
        if missing:
            raise UserError(
                f"--frames: found no file or folder {missing[0]}; give a folder of images, a video or images"
            )
    if arguments.out is not None:
        check_output(arguments.out)
    require_runs([arguments.run], arguments.logs, exported=True)


def run(arguments: argparse.Namespace) -> None:
    check(arguments)
    ranker = open_ranker(arguments)
    if arguments.annotations is not None:
        with ended_by_interrupt():
            from lr2ppo.inference.file import rank_file

        frames_root = arguments.frames_root or arguments.annotations.parent
        written, existing = rank_file(ranker, arguments.annotations, frames_root, arguments.out)
        say(f"{arguments.out}: wrote {written} clips, {existing} were there already")
        return
    from lr2ppo.inference.labels import format_ranking, split_labels

    frames = arguments.frames[0] if len(arguments.frames) == 1 else arguments.frames
    ranked = ranker.rank(frames, split_labels(arguments.labels), arguments.description)
    if arguments.json:
        rows = [{"label": each.label, "score": each.score, "probability": each.probability} for each in ranked]
        print(json.dumps({"run": ranker.name, "by": arguments.by, "ranked": rows}, ensure_ascii=False))  # noqa: T201 (exact)
        return
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    say(format_ranking(ranked, "█" if is_unicode else "#"))
