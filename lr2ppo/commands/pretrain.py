"""Train tiny encoders on a folder's pictures and texts, for use without pretrained weights.

Three losses of equal weight: which pictures' captions name a label (contrast between the label's token and each
picture's best patch), masked words, and whether a label occurs in the text beside it.
"""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import count, seed
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo pretrain --data data/mini --out pretrained_models/mini"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder in LRMovieNet's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoders: OUT/roberta and OUT/vit")
    parser.add_argument(
        "--reuse", action="store_true", help="keep encoders that OUT has already; those of other data are refused"
    )
    parser.add_argument("--seed", type=seed, default=7, help="(default 7)")
    parser.add_argument("--steps", type=count, default=800, help="(default 800)")
    parser.add_argument("--batch", type=count, default=64, help="pictures per step (default 64)")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="(default 0.004)")
    parser.add_argument("--width", type=count, default=64, help="of both encoders' tokens (default 64)")
    parser.add_argument("--layers", type=count, default=2, help="of each encoder (default 2)")
    parser.add_argument("--heads", type=count, default=4, help="of each layer's attention (default 4)")
    parser.add_argument("--image-size", type=count, default=64, help="in pixels (default 64)")
    parser.add_argument("--patch-size", type=count, default=8, help="in pixels (default 8)")
    parser.add_argument(
        "--vocabulary", type=count, default=1000, help="most tokens of the BPE vocabulary (default 1000)"
    )
    parser.add_argument("--max-tokens", type=count, default=196, help="longest text in tokens (default 196)")
    parser.add_argument(
        "--pictures", type=count, default=10000, help="most pictures used; all are kept in memory (default 10000)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.reuse and _has_encoders(arguments.out, arguments.data):
        say("already exists")
        return
    with ended_by_interrupt():
        from lr2ppo.encoders.pretrain import pretrain

    losses = pretrain(
        arguments.data,
        arguments.out,
        seed=arguments.seed,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        width=arguments.width,
        layers=arguments.layers,
        heads=arguments.heads,
        image_size=arguments.image_size,
        patch_size=arguments.patch_size,
        vocabulary=arguments.vocabulary,
        max_tokens=arguments.max_tokens,
        pictures=arguments.pictures,
        device=arguments.device,
    )
    shown = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    say(f"wrote {arguments.out}/roberta and {arguments.out}/vit; final losses: {shown}")


def _has_encoders(out: Path, data: Path) -> bool:
    """Whether a folder has both encoders of one pretraining on this data; raises `UserError` if it has those of other.

    Those of earlier versions do not say what they were trained on.
    """
    from lr2ppo.data.captions import PRETRAINED_ON, captions_fingerprint
    from lr2ppo.runs.lookup import read_mapping

    folders = [out / "roberta", out / "vit"]
    if not all((folder / "config.json").is_file() for folder in folders):
        return False
    try:
        text, image = (read_mapping(folder / PRETRAINED_ON) for folder in folders)
    except ValueError as error:
        raise UserError(f"{out}: {error}; remove this folder") from None
    if text and text.get("data") != captions_fingerprint(data):
        raise UserError(
            f"{out}: found encoders of other data than {data}; remove this folder, or give a DATA of another name"
        )
    return text == image
