"""Convert a published checkpoint to a run; with --to-published, a run to a published checkpoint."""

import argparse
import shlex
from pathlib import Path

from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo published pointwise.bin logs/pointwise/published && sh ppo_eval.sh pointwise/published"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="published checkpoint; or a run or its best/ folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="run to write; with --to-published a file to write")
    parser.add_argument("--to-published", action="store_true", help="write a run's model as a published checkpoint")
    parser.add_argument("--text-tokens", type=int, help="tokens of the flatten head (default 196)")
    parser.add_argument("--frames", type=int, help="frames of the flatten head (default 16)")
    parser.add_argument(
        "--preset", default="lrmovienet", help="folder under configs/ with the run's data settings (default lrmovienet)"
    )
    parser.add_argument("--config", type=Path, help="the stage's YAML file, in place of the preset's")


def run(arguments: argparse.Namespace) -> None:
    with ended_by_interrupt():
        from lr2ppo.models.published import load_published, write_published
        from lr2ppo.training.converted import write_converted_run

    if arguments.to_published:
        write_published(arguments.source, arguments.out)
        return
    model = load_published(arguments.source, arguments.text_tokens, arguments.frames)
    folder = write_converted_run(model, arguments.source, arguments.out, arguments.preset, arguments.config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    command = shlex.join(["sh", "ppo_eval.sh", str(folder)])
    say(f"{folder}: a {type(model).__name__} of {weights:,} weights; evaluate it with: {command}")
