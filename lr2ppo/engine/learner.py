"""A model on its device and spread over the processes, with its optimizer and the schedule of its learning rate."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lr2ppo.config import ComputeConfig, OptimizerConfig
from lr2ppo.engine.optimizer import build_optimizer, learning_rate
from lr2ppo.engine.processes import Processes, autocast
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.fusion import MLP
from lr2ppo.models.weights import save_model

M = TypeVar("M", bound=RelevanceRanker | PartialOrderModel)


class Learner(Generic[M]):
    """A model that learns: call `parallel` for what is to be learned from, `step` with each batch's loss."""

    def __init__(
        self, model: M, optimizer: OptimizerConfig, steps: int, compute: ComputeConfig, processes: Processes
    ) -> None:
        """`steps` is how many the schedule is laid out over."""
        self.model: M = model
        self.compute, self.processes = compute, processes
        model.to(processes.device)
        if compute.checkpoint_activations:
            _checkpoint_activations(model)
        if compute.compile:
            model.compile()
        self.parallel = _spread(model, compute, processes)
        self.optimizer, self.schedule = build_optimizer(model, optimizer, steps)
        self._batches = 0

    def step(self, loss: Tensor) -> bool:
        """Learn from a batch's loss; True where this made a step, which every `accumulate`-th batch does."""
        self._batches += 1
        makes_step = self._batches % self.compute.accumulate == 0
        with nullcontext() if makes_step else self._unshared_gradients():
            (loss / self.compute.accumulate).backward()
        if makes_step:
            self.optimizer.step()
            # At once: their memory is wanted by what comes next.
            self.optimizer.zero_grad(set_to_none=True)
        return makes_step

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.schedule)

    def autocast(self) -> AbstractContextManager[object]:
        """Within it, products are computed in the run's precision."""
        return autocast(self.compute.precision, self.processes.device)

    @contextmanager
    def whole(self) -> Iterator[M]:
        """The model with all its weights on this process, in the run's precision; to be used without gradients."""
        if isinstance(self.parallel, FSDPModule):
            self.parallel.unshard()
        try:
            with self.autocast():
                yield self.model
        finally:
            if isinstance(self.parallel, FSDPModule):
                self.parallel.reshard()

    def save(self, folder: Path) -> None:
        """Write the weights, wherever their parts are; every process has to call it, the main one writes."""
        tensors = {name: _gather(tensor) for name, tensor in self.model.state_dict().items()}
        if self.processes.is_main:
            save_model(folder, self.model, tensors)

    @contextmanager
    def _unshared_gradients(self) -> Iterator[None]:
        """Within it, gradients stay with each process, to be averaged with those of the step's last batch."""
        if isinstance(self.parallel, DistributedDataParallel):
            with self.parallel.no_sync():
                yield
        elif isinstance(self.parallel, FSDPModule):
            self.parallel.set_requires_gradient_sync(False)
            yield
            self.parallel.set_requires_gradient_sync(True)
        else:
            yield


def count_steps(batches: int, compute: ComputeConfig) -> int:
    """How many steps a run of so many batches makes; raises `UserError` where it makes none."""
    steps = batches // compute.accumulate
    if steps == 0:
        raise UserError(
            f"compute.accumulate: found {compute.accumulate}, but the run has {batches} batches in all; "
            "wanted fewer, or more train.epochs"
        )
    return steps


def _spread(model: nn.Module, compute: ComputeConfig, processes: Processes) -> nn.Module:
    if processes.world_size == 1:
        return model
    if compute.strategy == "fsdp":
        # It turns the model itself into one whose weights are spread.
        fully_shard(model, mesh=processes.mesh(), reshard_after_forward=False)
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    # Views of the buckets they are sent in: gradients are not held twice.
    parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if compute.compress_gradients:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def _checkpoint_activations(model: nn.Module) -> None:
    """Keep only what the feed-forward nets are given, and compute their wide insides again when gradients are due."""
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
        check_fn=lambda module: isinstance(module, MLP | nn.Sequential),
    )


def _gather(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
