"""Compare methods over seeds and data sets, as a set in configs/compare says: train what is missing, then one table.

Finished runs are found again, also by other sets; stopped at any moment, the same command continues. An override is of
the set (seeds=[1,2]), or a setting of all its runs (train.epochs=3, ppo:loss.margin=0.1).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lr2ppo.commands.arguments import add_overrides_argument
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.files import check_folder_inside

if TYPE_CHECKING:
    from lr2ppo.config.schema import CompareConfig

EXAMPLE = "lr2ppo compare main seeds=[1,2,3]"
SETS = Path("configs", "compare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", metavar="SET", help=f"name of a file in {SETS}, or the path of one")
    add_overrides_argument(parser, "seeds=[1,2] preset=configs/lrmovienet train.epochs=3")


def run(arguments: argparse.Namespace) -> None:
    file = _find(arguments.set)
    config = read_set(file, arguments.overrides)
    out = config.logs / file.stem
    check_folder_inside(out)
    with ended_by_interrupt():
        from lr2ppo.stages.compare import run_comparison, show_comparison

    show_comparison(run_comparison(config), config, file.stem, out)


def _find(reference: str) -> Path:
    """The file of a set; raises `UserError` naming the sets if there is none."""
    path = Path(reference) if reference.endswith(".yaml") else SETS / f"{reference}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in SETS.glob("*.yaml")))
        raise UserError(f"{path}: no such set; there are: {known}" if known else f"{path}: no such set")
    return path


def read_set(file: Path, overrides: list[str]) -> "CompareConfig":
    """Load a set; an override that is not of one of its keys is a setting of all runs."""
    from lr2ppo.config.load import load_config
    from lr2ppo.config.schema import CompareConfig

    own = [each for each in overrides if each.partition("=")[0] in CompareConfig.model_fields]
    config = load_config(file, "compare", own)
    more = [each for each in overrides if each not in own]
    if wrong := [each for each in more if "=" not in each]:
        raise UserError(f"{wrong[0]!r}: wanted an override key=value, such as seeds=[1,2] or train.epochs=3")
    return config.model_copy(update={"overrides": [*config.overrides, *more]})
