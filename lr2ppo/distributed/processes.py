"""Processes and devices: one process on its own, or several started by torchrun."""

import ctypes
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lr2ppo.config.schema import Precision
from lr2ppo.errors import UserError

T = TypeVar("T")
# Of Linux's prctl(2): the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
# What gloo says where another process has ended.
PEER_LOST = r"(?i)connection (closed|reset|refused)|broken pipe|read error|timed out"
PATIENCE_SECONDS = 5


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mesh(self) -> DeviceMesh:
        """All processes of the run in a row."""
        return init_device_mesh(self.device.type, (self.world_size,))

    def total(self, value: Tensor) -> Tensor:
        """The sum of every process's value, on every process; gradients run back into each process's own."""
        if self.world_size == 1:
            return value
        summed: Tensor = _Total.apply(value)
        return summed

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def most(self, value: int) -> int:
        """The highest of every process's values, on every process."""
        if self.world_size == 1:
            return value
        highest = torch.tensor(value, device=self.device)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        return int(highest.item())

    def wait(self) -> None:
        """Return once every process has called this."""
        self.most(0)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each value."""
        gathered = self.gather(values)
        return {key: sum(each[key] for each in gathered) / len(gathered) for key in values}


class _Total(torch.autograd.Function):
    """The sum over processes, whose gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        dist.all_reduce(summed)
        return summed


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the run's process group on a device (`auto`: the GPU of this process's number, else the CPU)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1 and platform.system() == "Linux":
        # Where the launcher is killed, nobody else would stop what it started.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if world_size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world_size)
        if dist.get_backend() == "gloo":
            # Never freed: whoever frees it waits for its threads with Python's lock held, which they may need.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    try:
        yield Processes(rank, world_size, chosen)
    except RuntimeError as error:
        if world_size == 1 or not (isinstance(error, dist.DistBackendError) or re.search(PEER_LOST, str(error))):
            raise
        # The launcher is to see first which process it was that ended, and stops this one.
        time.sleep(PATIENCE_SECONDS)
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; `auto` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: found {name!r}, wanted auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device: {name} was asked for, but torch finds no GPU; use device=auto or device=cpu")
        device = device if device.index is not None else torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # Products in float32 may use the tensor cores' TF32.
        torch.set_float32_matmul_precision("high")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What a precision means on a device: `auto` is bf16 on a GPU that has it, else fp32."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Within it, matrix products are computed in a precision."""
    in_bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if in_bf16 else nullcontext()
