"""Load a full-size published checkpoint and run it forward; print its weights, the time and the peak memory.

Without --checkpoint, first write one with random weights in the published layout to a temporary file.
"""

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import reports_user_errors
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.published import FRAMES, HEADS, PUBLISHED_MODULES, TEXT_TOKENS, load_published, rename_modules
from lr2ppo.models.weights import KINDS, model_shapes
from lr2ppo.tensors import write_tensors
from lr2ppo.training.run_folder import peak_memory_gib

WIDTH = 768


def write_random(path: Path, kind: type[RelevanceRanker] | type[PartialOrderModel]) -> None:
    """Write a checkpoint in the published layout and sizes, with random weights."""
    config = ModelConfig(head="flatten", attention="published", width=WIDTH, heads=HEADS, dropout=0.0)
    shapes = rename_modules(model_shapes(kind, config), PUBLISHED_MODULES)
    write_tensors(path, {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()})


@torch.inference_mode()
def run_forward(checkpoint: Path, clips: int, labels: int) -> None:
    """Load a checkpoint, score random features and print sizes, times and memory."""
    started = time.perf_counter()
    model = load_published(checkpoint)
    loaded = time.perf_counter()
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {weights:,} weights")
    print(f"loaded in {loaded - started:.1f} s, peak memory {peak_memory_gib():.2f} GiB")
    text, frames = torch.randn(clips, labels, TEXT_TOKENS, WIDTH), torch.randn(clips, FRAMES, WIDTH)
    started = time.perf_counter()
    if isinstance(model, RelevanceRanker):
        output = model(text, frames)
    else:
        output = model(text, frames, torch.tensor([[0, 1, 1, 0]]).expand(clips, -1))
    seconds = time.perf_counter() - started
    print(
        f"forward of {clips} x {labels} labels, {TEXT_TOKENS} tokens and {FRAMES} frames: output {list(output.shape)}"
    )
    print(f"in {seconds:.2f} s ({clips * labels / seconds:.1f} labels/s), peak memory {peak_memory_gib():.2f} GiB")


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: .venv/bin/python scripts/full_size.py")
    parser.add_argument("--checkpoint", type=Path, help="published checkpoint (default: random weights)")
    parser.add_argument("--kind", choices=list(KINDS), default="RelevanceRanker", help="model of the random checkpoint")
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--labels", type=int, default=20)
    arguments = parser.parse_args()
    if arguments.checkpoint is not None:
        run_forward(arguments.checkpoint, arguments.clips, arguments.labels)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.bin"
        # In a separate process, whose memory does not count.
        writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(path, KINDS[arguments.kind]))
        writer.start()
        writer.join()
        print(f"random checkpoint in the published layout: {path.stat().st_size / 2**30:.2f} GiB")
        run_forward(path, arguments.clips, arguments.labels)


if __name__ == "__main__":
    main()
