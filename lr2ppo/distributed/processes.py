"""Processes and devices: a single process, or several started by torchrun."""

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
from torch.distributed import FileStore, Store  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lr2ppo.config.schema import Precision
from lr2ppo.errors import UserError

T = TypeVar("T")
# Option of Linux's prctl(2): the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1
# gloo's messages when another process has ended.
PEER_LOST = r"(?i)connection (closed|reset|refused)|broken pipe|read error|timed out"
SECONDS_FOR_LAUNCHER = 5
# Variable of the launcher: the file in which the processes of one machine meet.
GROUP_FILE = "LR2PPO_GROUP_FILE"


@dataclass(frozen=True)
class Processes:
    """This process and its process group: rank, world size and device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def reads_at_once(self) -> bool:
        """Whether to read a result is not to wait: the device is the processor itself."""
        return self.device.type == "cpu"

    def mesh(self) -> DeviceMesh:
        """The one-dimensional device mesh of all processes of the run."""
        return init_device_mesh(self.device.type, (self.world_size,))

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' values, on every process; gradients flow back to each process's value."""
        if self.world_size == 1:
            return value
        summed: Tensor = _AllReduce.apply(value)
        return summed

    def gather(self, value: T) -> list[T]:
        """Gather the values of all processes, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def max(self, value: int) -> int:
        """Return the maximum of all processes' values, on every process."""
        if self.world_size == 1:
            return value
        return int(self.highest(torch.tensor(value, device=self.device)).item())

    def highest(self, value: Tensor) -> Tensor:
        """Set a tensor to the maximum of all processes' values and return it, without waiting for the device."""
        if self.world_size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def broadcast(self, value: Tensor) -> None:
        """Give every process the main one's values of a tensor."""
        if self.world_size > 1:
            dist.broadcast(value, 0)

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.max(0)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of each value over processes."""
        gathered = self.gather(values)
        return {key: sum(each[key] for each in gathered) / len(gathered) for key in values}


class _AllReduce(torch.autograd.Function):
    """All-reduce sum whose gradient is the all-reduced sum of the gradients."""

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


def is_started() -> bool:
    """Whether the launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_rank() -> int:
    """This process's number among those that the launcher started on this machine."""
    return _of_launcher("LOCAL_RANK", 0)


def _of_launcher(name: str, alone: int) -> int:
    # Job systems leave variables of the same names to processes that work alone.
    return int(os.environ.get(name, alone)) if is_started() else alone


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the run's process group on a device (`auto`: the GPU of this process's local rank, else the CPU).

    A process that the launcher did not start is alone.
    """
    rank, world_size = _of_launcher("RANK", 0), _of_launcher("WORLD_SIZE", 1)
    chosen = choose_device(device, local_rank())
    if world_size > 1 and platform.system() == "Linux":
        # If the launcher is killed, nothing else stops the processes it started.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if world_size > 1:
        backend, store = "nccl" if chosen.type == "cuda" else "gloo", _private_store(world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        if dist.get_backend() == "gloo":
            # Its destructor may wait, with the GIL held, for threads that need the GIL: it is never called.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    try:
        yield Processes(rank, world_size, chosen)
    except RuntimeError as error:
        if world_size == 1 or not (isinstance(error, dist.DistBackendError) or re.search(PEER_LOST, str(error))):
            raise
        # Let the launcher first see which process ended; it then stops this one.
        time.sleep(SECONDS_FOR_LAUNCHER)
        raise SystemExit(1) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _private_store(world_size: int) -> Store | None:
    """Return the store in which the processes of one machine meet; None if the run has several machines."""
    file = os.environ.get(GROUP_FILE)
    if file is None:
        return None
    # Restarted processes must not find the addresses of ended ones.
    return FileStore(f"{file}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", world_size)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device called `name`; `auto` is a GPU if there is one. Raises `UserError` if it is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: found {name!r}, wanted auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device: found {name}, but torch finds no GPU; use device=auto or device=cpu")
        device = device if device.index is not None else torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # Products in float32 may use the tensor cores' TF32.
        torch.set_float32_matmul_precision("high")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve a precision on a device: `auto` is bf16 on a GPU that supports it, else fp32."""
    if precision != "auto":
        return precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the autocast context of a precision for matrix products."""
    in_bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if in_bf16 else nullcontext()
