"""Arguments shared by several commands, and their checks before heavy imports."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.terminal import say

if TYPE_CHECKING:
    from lr2ppo.inference.ranker import LabelRanker


def whole_number(text: str) -> int:
    """Parse a whole number from 0, as an argparse type."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number, such as 3")
    return int(text)


def count(text: str) -> int:
    """Parse a whole number of at least 1, as an argparse type."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {text}, wanted a whole number of at least 1")
    return value


def whole_numbers(text: str) -> list[int]:
    """Parse comma-separated whole numbers, as an argparse type."""
    return [whole_number(part.strip()) for part in text.split(",")]


def folder(text: str) -> Path:
    """Parse the path of an existing folder, as an argparse type."""
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"found no folder {text}")
    return Path(text)


def seed(text: str) -> int:
    """Parse a seed of random numbers, as an argparse type."""
    from lr2ppo.config.schema import LARGEST_SEED

    value = whole_number(text)
    if value > LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"found {text}, wanted a whole number from 0 to {LARGEST_SEED}")
    return value


def share(text: str) -> float:
    """Parse a number from 0 to 1, as an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number from 0 to 1")
    return value


def add_logs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder of the runs (default logs)")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `read_config`."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file, such as configs/mini/STAGE.yaml")
    parser.add_argument("--print-config", action="store_true", help="print the resolved config and exit")
    add_overrides_argument(parser, "seed=1 train.epochs=3")


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fresh", action="store_true", help="remove an earlier run of this name and start again")
    parser.add_argument(
        "--max-restarts",
        type=whole_number,
        default=0,
        metavar="N",
        help="restart failed processes up to N times, from the newest checkpoint (default 0)",
    )


def stage_names(text: str) -> list[str]:
    """Parse comma-separated names of training stages."""
    from lr2ppo.runs.stages import STAGES

    names = text.split(",")
    if not set(names) <= set(STAGES):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted some of {', '.join(STAGES)}, separated by commas")
    return [stage for stage in STAGES if stage in names]


def add_overrides_argument(parser: argparse.ArgumentParser, example: str) -> None:
    # With a default, argparse does not list it as missing.
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"config overrides, such as {example}"
    )


def read_config(arguments: argparse.Namespace, stage: str) -> Any:
    """Load the stage's config; return None if it was only to be printed."""
    from lr2ppo.config.load import dump_config, load_config

    if arguments.config is None:
        raise UserError(f"--config: is missing; give one, such as --config configs/mini/{stage}.yaml")
    config = load_config(arguments.config, stage, arguments.overrides)
    if arguments.print_config:
        # YAML is exact, and escapes what controls a terminal.
        sys.stdout.write(dump_config(config))
        return None
    return config


def add_ranker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `open_ranker`."""
    parser.add_argument("run", metavar="RUN", help="a run (NAME, STAGE/NAME or a path), or an exported folder")
    for option, what in (("text", "text encoder"), ("tokenizer", "tokenizer"), ("image", "image encoder")):
        parser.add_argument(f"--{option}", type=Path, help=f"path of the {what} (default: its path at extraction)")
    parser.add_argument(
        "--by",
        choices=("ranker", "reward"),
        default="ranker",
        help="what orders the labels: the run's model, or its reward model (default ranker)",
    )
    add_logs_argument(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def open_ranker(arguments: argparse.Namespace) -> "LabelRanker":
    """Load the ranker named on the command line; print its warning."""
    with ended_by_interrupt():
        from lr2ppo.inference.ranker import LabelRanker

    ranker = LabelRanker.load(
        arguments.run,
        logs=arguments.logs,
        text=arguments.text,
        tokenizer=arguments.tokenizer,
        image=arguments.image,
        by=arguments.by,
        device=arguments.device,
    )
    if ranker.warning:
        say(f"warning: {ranker.warning}", error=True)
    return ranker


def require_rows(references: Sequence[str], logs: Path) -> None:
    """Raise `UserError` if a run of the rows RUN or RUN,RUN,... does not exist."""
    from lr2ppo.runs.lookup import split_row

    require_runs([name for reference in references for name in split_row(reference)], logs)


def require_runs(references: Sequence[str], logs: Path, exported: bool = False) -> None:
    """Raise `UserError` if a run does not exist; with `exported`, an exported folder is allowed in its place."""
    from lr2ppo.runs.lookup import find_run, is_exported
    from lr2ppo.runs.stages import STAGES

    for reference in references:
        if not (exported and is_exported(reference, logs)):
            find_run(reference, STAGES, logs)
