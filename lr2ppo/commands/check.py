"""Check a folder in LRMovieNet's layout for training: print what it contains, and what is wrong with it.

Exits with code 0 only if training can start.
"""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import folder
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo check data/LRMovieNet --frames-root data/MovieNet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the annotation files and the features")
    parser.add_argument(
        "--features", nargs="+", default=["clean_feat.h5"], help="feature files or patterns (default clean_feat.h5)"
    )
    parser.add_argument("--frames-root", type=folder, help="folder that image paths are relative to (default DATA)")


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.data.validate import require_valid

    require_valid(arguments.data, arguments.features, arguments.frames_root or arguments.data)
    say("training can start")
