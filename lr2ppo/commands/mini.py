"""Write the mini benchmark: generated clips of coloured shapes in LRMovieNet's layout, with real JPEG frames."""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import seed
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo mini data/mini --seed 7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from lr2ppo.data.mini import SIZES, WORLDS

    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--world",
        choices=WORLDS,
        default="uniform",
        help="uniform (default): 20 labels a clip, one scale of grades, "
        "annotators without errors; varied: 3 to 37 labels, some rare, several scales, annotators who contradict",
    )
    parser.add_argument("--seed", type=seed, default=7, help="random seed (default 7)")
    for part, size in SIZES.items():
        parser.add_argument(f"--{part}", type=int, default=size, metavar="N", help=f"number of clips (default {size})")
    parser.add_argument(
        "--table", type=int, metavar="N", help="write N target clips as a table for lr2ppo convert instead"
    )


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.data.mini import SIZES, write_mini, write_table
    from lr2ppo.files import atomic_folder

    out = arguments.out
    sizes = {part: getattr(arguments, part) for part in SIZES}
    with atomic_folder(out) as partial:
        if arguments.table is not None:
            write_table(partial, arguments.seed, arguments.table, arguments.world)
        else:
            write_mini(partial, arguments.seed, sizes, arguments.world)
    if arguments.table is not None:
        say(f"wrote {out}/table.csv: {arguments.table} clips, with their frames beside it")
        return
    counts = ", ".join(f"{size} {part}" for part, size in sizes.items())
    say(f"wrote {out}: {counts} clips")
