"""Turn a table of your own clips, CSV or JSON lines, into a data folder in LRMovieNet's layout.

TABLE has one row for each label of a clip. Columns: clip (an id), label, grade (0 to 10; empty for all labels of a clip
without grades), description, and frames (image files, folders or patterns, separated by ;) or video (a
file). Optional: group (such as the film: all its clips go into one split) and domain (source or target). JSON lines
have the same keys; a line may be a whole clip with a list labels of {label, grade}.

With a domain column, stage 1 learns from the source's grades, and the target's clips are split. Without one, all clips
are split, and the training clips serve all three stages: stage 1 with their grades, stage 2 with sampled pairs, stage 3
without grades.

Frames go to OUT/frames: as hard links to your files if the disk allows it, else as copies; frames of videos as JPEG
files. docs/own_data.md shows the way from a table to a trained ranker.
"""

import argparse
import shlex
from pathlib import Path

from lr2ppo.commands.arguments import seed, share
from lr2ppo.errors import UserError
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo convert mine.csv --out data/mine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "table", type=Path, metavar="TABLE", help="CSV (separated by , ; or tab) or JSON lines (.jsonl)"
    )
    parser.add_argument("--out", type=Path, required=True, help="new data folder to write")
    parser.add_argument("--preferences", type=Path, metavar="FILE", help="table with columns clip, better, worse")
    parser.add_argument("--columns", default="", metavar="COLUMN=NAME,...", help="names of the columns in TABLE")
    parser.add_argument("--frames-root", type=Path, help="folder that paths are relative to (default TABLE's folder)")
    parser.add_argument(
        "--frames-per-video", type=int, default=16, metavar="N", help="most frames per video (default 16)"
    )
    parser.add_argument(
        "--validation-share",
        type=share,
        metavar="SHARE",
        default=0.1,
        help="share of graded clips or groups for validation (default 0.1)",
    )
    parser.add_argument(
        "--test-share",
        type=share,
        metavar="SHARE",
        default=0.2,
        help="share of graded clips or groups for the test (default 0.2)",
    )
    parser.add_argument(
        "--pair-share",
        type=share,
        metavar="SHARE",
        help="share of pairs of different grades drawn for stage 2, from training clips without preferences "
        "(default 0.1; 0 with --preferences)",
    )
    parser.add_argument("--seed", type=seed, default=7, help="random seed (default 7)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.frames_per_video < 1:
        raise UserError(f"--frames-per-video: found {arguments.frames_per_video}, wanted at least 1")
    from lr2ppo.data.convert.folder import read_names, write_folder

    out = arguments.out
    summary = write_folder(
        arguments.table,
        out,
        preferences=arguments.preferences,
        names=read_names(arguments.columns),
        frames_root=arguments.frames_root,
        frames_per_video=arguments.frames_per_video,
        validation_share=arguments.validation_share,
        test_share=arguments.test_share,
        pair_share=arguments.pair_share,
        seed=arguments.seed,
    )
    say(summary)
    say(f"\nwrote {out}. Next, extract features: with pretrained encoders, see docs/own_data.md, or with tiny ones:\n")
    encoders = Path("pretrained_models", out.resolve().name)
    say(f"    {shlex.join(['lr2ppo', 'pretrain', '--data', str(out), '--out', str(encoders)])}")
