"""Benchmark a stage's training step on random features: times, rates, matrix FLOPs and memory."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from lr2ppo.benchmark.steps import FLOAT_BYTES, Shape, Step, TimedConfig, make_step, optimizer_bytes, torch_products
from lr2ppo.config.schema import ComputeConfig, ModelConfig
from lr2ppo.distributed.processes import Processes, resolve_precision
from lr2ppo.ops.linear import FastLinear
from lr2ppo.training.run_folder import peak_memory_gib

SQUARE = 4096
COPIED_BYTES = 2**30
TIMED_TOGETHER = 10


def time_steps(step: Callable[[], object], steps: int, device: torch.device) -> list[float]:
    """Time `steps` steps in seconds, after one warm-up step.

    On a GPU, a time is the mean of several steps in a row: a run does not wait for each.
    """
    seconds, together = [], 1 if device.type == "cpu" else TIMED_TOGETHER
    for _ in range(steps + 1):
        started = time.perf_counter()
        for _ in range(together):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - started) / together)
    return seconds[1:]


def count_flops(step: Step) -> int:
    """Count the floating-point operations of a step's matrix products, from their shapes."""
    counter = FlopCounterMode(display=False)
    # The counter knows only torch's products.
    with counter, torch_products(step.models):
        step.run()
    return int(counter.get_total_flops())


def matrix_rates(processes: Processes, precision: str) -> tuple[float, float]:
    """Measure the device's GFLOP/s in a large square product, in the precision of the run; the best of five.

    Returns the rates of torch's product and of `FastLinear`.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    first, second = (torch.randn(SQUARE, SQUARE, device=processes.device, dtype=dtype) for _ in range(2))
    layer = FastLinear(SQUARE, SQUARE, device=processes.device, dtype=dtype).requires_grad_(False)
    rates = [
        2 * SQUARE**3 / min(time_steps(product, 5, processes.device)) / 1e9
        for product in (lambda: torch.mm(first, second)[0, 0].item(), lambda: layer(first)[0, 0].item())
    ]
    return rates[0], rates[1]


def memory_rate(device: torch.device) -> float:
    """Measure the device's memory bandwidth in GiB/s, reads and writes of a large copy; the best of five."""
    source = torch.ones(COPIED_BYTES // 4, device=device)
    target = torch.zeros_like(source)
    return 2 * COPIED_BYTES / min(time_steps(lambda: target.copy_(source), 5, device)) / 2**30


def gradient_bytes(step: Step, compute: ComputeConfig) -> int:
    """The bytes of the gradients that several processes average in a step."""
    trained = [weight for model in step.models for weight in model.parameters() if weight.requires_grad]
    most = 2 if compute.compress_gradients else FLOAT_BYTES
    return sum(weight.numel() * min(most, weight.element_size()) for weight in trained)


def averaging_seconds(size: int, processes: Processes) -> float:
    """Time the sum of so many bytes over the processes and nothing else, in seconds; the best of five.

    DDP averages gradients so. FSDP moves as many bytes: it gathers the weights and sums the gradients in parts.
    """
    values = torch.ones(size // FLOAT_BYTES, device=processes.device)
    return min(time_steps(lambda: processes.all_reduce(values), 5, processes.device))


def measure(
    config: TimedConfig,
    trunk: ModelConfig,
    processes: Processes,
    *,
    labels: int,
    tokens: int | None,
    plain: bool,
    steps: int,
    trace: Path | None,
) -> dict[str, object]:
    """Benchmark one step of the config's stage with a trunk of this shape, on clips with `labels` and `tokens`.

    `plain` computes it as the published implementation does; `trace` is the file for a profile of one step.
    """
    shape = Shape.of(config, trunk, labels=labels, tokens=tokens)
    step = make_step(config, trunk, shape, processes, plain=plain)
    with torch_products(step.models, plain):
        seconds = time_steps(step.run, steps, processes.device)
        memory = peak_memory_gib()
        if trace is not None:
            write_profile(step.run, trace)
    best = min(seconds)
    flops = count_flops(step)
    precision = resolve_precision(config.compute.precision, processes.device)
    torch_rate, layer_rate = matrix_rates(processes, precision)
    rate, gib_rate = max(torch_rate, layer_rate), memory_rate(processes.device)
    # The lower bound for any program: its products at the matrix rate, and AdamW's passes over memory.
    floor = flops / rate / 1e9 + optimizer_bytes(config.stage, trunk) / gib_rate / 2**30
    averaged = gradient_bytes(step, config.compute)
    pairs = shape.clips * shape.pairs * processes.world_size
    encodings = shape.encodings(config.stage, plain)
    return {
        "stage": config.stage,
        "preset": config.preset,
        "way": "plain" if plain else "ours",
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
        "mib_averaged_per_step": round(averaged / 2**20, 2),
        "averaging_seconds": round(averaging_seconds(averaged, processes), 5) if processes.world_size > 1 else None,
        "mib_read_per_step": round(shape.bytes_read(config.stage, plain) / 2**20, 2),
        "peak_memory_gib": round(memory, 2),
    }


def write_profile(step: Callable[[], None], path: Path) -> None:
    """Write a trace of one step, for chrome://tracing or Perfetto."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities, record_shapes=True) as profiler:
        step()
    profiler.export_chrome_trace(str(path))
