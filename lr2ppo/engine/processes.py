"""Processes and devices: one process on its own, or several started by torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lr2ppo.errors import UserError

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over processes where there are several."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over processes of each value."""
        gathered = self.gather(values)
        return {key: sum(each[key] for each in gathered) / len(gathered) for key in values}


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the run's process group on a device (`auto`: the GPU of this process's number, else the CPU)."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if world_size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=world_size)
    try:
        yield Processes(rank, world_size, chosen)
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
    return device


def bare(model: nn.Module, kind: type[Module]) -> Module:
    """The model inside its data-parallel wrapper."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if not isinstance(inner, kind):
        raise TypeError(f"found a {type(inner).__name__}, wanted a {kind.__name__}")
    return inner
