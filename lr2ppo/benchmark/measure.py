"""How fast a stage's training step is: one JSON line of times, rates, matrix work and memory, on random features.

`--plain` computes the same step the published way: every slot of every pair is encoded by itself, with its own copy of
the clip's frames. A ratio of two lines from one machine is the speed-up.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lr2ppo.benchmark.steps import Shape, make_step, optimizer_bytes
from lr2ppo.config.load import load_config
from lr2ppo.distributed import launch as torchrun
from lr2ppo.distributed.processes import Processes, join_processes, resolve_precision
from lr2ppo.errors import UserError, reports_user_errors
from lr2ppo.ops.linear import Linear, plain_products
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.run_folder import peak_memory_gib

SQUARE = 4096
COPIED_BYTES = 2**30


def time_steps(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Seconds of each of some steps, after one that warms up."""
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def count_flops(step: Callable[[], None]) -> int:
    """Floating point operations of a step's matrix products, from their shapes."""
    counter = FlopCounterMode(display=False)
    # It knows torch's own products.
    with counter, plain_products():
        step()
    return int(counter.get_total_flops())


def matrix_rates(processes: Processes, precision: str) -> tuple[float, float]:
    """GFLOP/s that the device reaches in a large square product, in the precision of the run; the best of five.

    The first is that of torch's own product, the second that of `Linear`, where the models have another.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = (torch.randn(SQUARE, SQUARE, device=processes.device, dtype=dtype) for _ in range(2))
    layer = Linear(SQUARE, SQUARE, device=processes.device, dtype=dtype).requires_grad_(False)
    rates = [
        2 * SQUARE**3 / min(time_steps(product, 5, processes.device)) / 1e9
        for product in (lambda: torch.mm(first, second)[0, 0].item(), lambda: layer(first)[0, 0].item())
    ]
    return rates[0], rates[1]


def memory_rate(device: torch.device) -> float:
    """GiB/s that the device reads and writes when it copies a large tensor; the best of five."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * COPIED_BYTES / min(time_steps(lambda: target.copy_(source), 5, device)) / 2**30


def measure(arguments: argparse.Namespace, processes: Processes) -> dict[str, object]:
    """The figures of one stage's step, as the preset and the options say."""
    preset = Path("configs") / arguments.preset
    config = load_config(preset / f"{arguments.stage}.yaml", arguments.stage, arguments.overrides)
    trunk = load_config(preset / "pointwise.yaml", "pointwise", arguments.model).model
    shape = Shape.of(config, trunk, labels=arguments.labels, tokens=arguments.tokens)
    step = make_step(config, trunk, shape, processes, plain=arguments.plain)
    with plain_products(arguments.plain):
        seconds = time_steps(step, arguments.steps, processes.device)
        memory = peak_memory_gib()
        if arguments.profile is not None:
            write_profile(step, arguments.profile)
    best = min(seconds)
    flops = count_flops(step)
    precision = resolve_precision(config.compute.precision, processes.device)
    torch_rate, layer_rate = matrix_rates(processes, precision)
    rate, gib_rate = max(torch_rate, layer_rate), memory_rate(processes.device)
    # What no program that does this work goes below: its products at the matrix rate, and AdamW's passes over memory.
    floor = flops / rate / 1e9 + optimizer_bytes(arguments.stage, trunk) / gib_rate / 2**30
    pairs = shape.clips * shape.pairs * processes.world_size
    encodings = shape.encodings(arguments.stage, arguments.plain)
    return {
        "stage": arguments.stage,
        "preset": arguments.preset,
        "way": "plain" if arguments.plain else "ours",
        "precision": precision,
        "processes": processes.world_size,
        "clips": shape.clips,
        "pairs_per_clip": shape.pairs,
        "labels_per_clip": shape.labels,
        "tokens": shape.tokens,
        "seconds_per_step": round(best, 4),
        "seconds_of_steps": [round(each, 3) for each in seconds],
        "pairs_per_second": round(pairs / best, 2),
        "label_encodings_per_second": round(encodings * processes.world_size / best, 2),
        "matrix_gflop_per_step": round(flops / 1e9, 4),
        "gflop_per_second": round(flops / best / 1e9, 1),
        "machine_gflop_per_second": round(rate, 1),
        "torch_gflop_per_second": round(torch_rate, 1),
        "share_of_machine": round(flops / best / 1e9 / rate, 3),
        "machine_gib_per_second": round(gib_rate, 1),
        "floor_seconds": float(f"{floor:.4g}"),
        "share_of_floor": round(floor / best, 3),
        "mib_read_per_step": round(shape.bytes_read(arguments.stage, arguments.plain) / 2**20, 2),
        "peak_memory_gib": round(memory, 2),
    }


def write_profile(step: Callable[[], None], path: Path) -> None:
    """A trace of one step, to be opened in chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
    profiler.export_chrome_trace(str(path))


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m lr2ppo.benchmark reward && python -m lr2ppo.benchmark reward --plain",
    )
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--preset", default="lrmovienet", help="folder under configs/ (default lrmovienet)")
    parser.add_argument("--plain", action="store_true", help="the published way, each slot of each pair by itself")
    parser.add_argument("--labels", type=int, default=20, help="labels of a clip (default 20)")
    parser.add_argument("--tokens", type=int, help="text tokens of a label (default all that the flatten head takes)")
    parser.add_argument(
        "--model", action="append", default=[], metavar="key=value", help="overrides of the model's keys"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes that share the work (default 1)")
    parser.add_argument("--steps", type=int, default=3, help="steps timed, of which the quickest counts (default 3)")
    parser.add_argument("--profile", type=Path, help="write a torch profiler trace of one step here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as compute.precision=bf16")
    arguments = parser.parse_intermixed_args()
    if arguments.steps < 1 or arguments.labels < 2:
        raise UserError(f"found --steps {arguments.steps} --labels {arguments.labels}, wanted at least 1 and 2")
    if arguments.processes > 1 and "RANK" not in os.environ:
        os.environ["NPROC"] = str(arguments.processes)
        sys.argv[1:1] = ["-m", "lr2ppo.benchmark"]
        torchrun.main()
        return
    with join_processes("auto") as processes:
        figures = measure(arguments, processes)
        if processes.is_main:
            print(json.dumps(figures))


if __name__ == "__main__":
    main()
