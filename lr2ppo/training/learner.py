"""A model in training: on its device, parallel over processes, with its optimizer and learning-rate schedule."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.lr_scheduler import LambdaLR

from lr2ppo.config.schema import ComputeConfig, OptimizerConfig
from lr2ppo.distributed.processes import Processes, autocast, resolve_precision
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.layers import MLP
from lr2ppo.models.weights import save_model
from lr2ppo.ops.adamw import NO_COPIES, MixedAdamW
from lr2ppo.ops.linear import FastLinear, use_fast_linear
from lr2ppo.training.writer import Writer

M = TypeVar("M", bound=RelevanceRanker | PartialOrderModel)
# Weights of so many numbers are worth a bfloat16 copy.
COPIED = 2**16


class Learner(Generic[M]):
    """A model in training: call `parallel` for a forward pass, `backward` with the batch's loss, then `count`.

    `backward` waits for nothing, so that a GPU can replay it (`Replayed`); `outcome` is what its step found, on the
    device: the loss, whether that or a gradient was not finite, and the norm of each gradient.
    """

    # The groups of tensors in a checkpoint.
    PARTS = ("weights", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        model: M,
        optimizer: OptimizerConfig,
        steps: int,
        compute: ComputeConfig,
        processes: Processes,
        on_nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        """`steps` is the length of the learning-rate schedule."""
        self.model: M = model
        self.on_nonfinite, self.clip_gradients = on_nonfinite, optimizer.clip_gradients
        self.gradient_norm = 0.0
        self.steps = self.skipped = 0
        self.compute, self.processes = compute, processes
        use_fast_linear(model).to(processes.device)
        if compute.checkpoint_activations:
            _checkpoint_activations(model)
        if compute.compile:
            model.compile()
        # FSDP and accumulated gradients need gradients in float32.
        in_bf16 = resolve_precision(compute.precision, processes.device) == "bf16"
        has_copies = (
            in_bf16 and compute.accumulate == 1 and not (processes.world_size > 1 and compute.strategy == "fsdp")
        )
        self._originals = _copy_in_bfloat16(model) if has_copies else {}
        for original in self._originals.values():
            # As the parallel model does with its own weights.
            processes.broadcast(original.data)
        self.parallel = _parallelize(model, compute, processes)
        self._divisor = compute.accumulate
        if isinstance(self.parallel, FSDPModule) and not _averages_gradients(processes):
            self._divisor *= processes.world_size
        copies: dict[Tensor, Tensor] = {original: copy for copy, original in self._originals.items()}
        self.optimizer, self.schedule = build_optimizer(self._weights().values(), optimizer, steps, copies)
        self._batches = 0
        self.outcome: Tensor | None = None
        self._named: list[str] = []
        # The outcomes of steps that are not counted yet, with their clips.
        self._unsettled: list[tuple[Tensor, Sequence[str]]] = []
        self._stops = torch.zeros((), device=processes.device)

    @property
    def can_replay(self) -> bool:
        """Whether a GPU can replay a step: it is the only process, and each batch makes a step."""
        compute, processes = self.compute, self.processes
        plain = compute.accumulate == 1 and not compute.compile and not compute.checkpoint_activations
        return processes.device.type == "cuda" and processes.world_size == 1 and plain

    def backward(self, loss: Tensor) -> None:
        """Backpropagate a batch's loss; with the last batch of a step, make the step.

        One whose loss or gradients are not finite changes no weights: see `settle`.
        """
        if not self._completes_step:
            with self._unshared_gradients():
                (loss / self._divisor).backward()
            return
        (loss / self._divisor).backward()
        self._update(loss.detach())
        # Immediately: the next computation needs their memory.
        self.model.zero_grad(set_to_none=True)

    def count(self, clips: Sequence[str] = ()) -> bool:
        """Count the batch of `clips` after its backward pass; return whether it made a step."""
        makes_step = self._completes_step
        self._batches += 1
        if makes_step and self.outcome is not None:
            # A copy: when it is replayed, the next step writes into the same tensor.
            self._unsettled.append((self.outcome.clone(), clips))
            if self.processes.reads_at_once:
                self.settle()
        return makes_step

    def settle(self) -> None:
        """Wait for the steps made; `count` does so on a CPU. Every process must call it after the same steps.

        If loss or gradients of one are not finite, it raises `UserError` on every process, naming the batch's clips and
        the tensors, or, if `on_nonfinite` is "skip", counts it in `skipped`.
        """
        unsettled, self._unsettled = self._unsettled, []
        if not unsettled:
            return
        outcomes = torch.stack([outcome for outcome, _ in unsettled])
        self.gradient_norm = outcomes[-1, 2:].norm().item()
        for (loss, is_bad, *norms), (_, clips) in zip(outcomes.tolist(), unsettled, strict=True):
            if not is_bad:
                self.steps += 1
            elif self.on_nonfinite == "skip":
                self.skipped += 1
            else:
                self._refuse(loss, norms, clips)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context, steps change no weights."""
        stops, self._stops = self._stops, torch.ones_like(self._stops)
        try:
            yield
        finally:
            self._stops = stops

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.schedule)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast context of the run's precision."""
        return autocast(self.compute.precision, self.processes.device)

    @contextmanager
    def unsharded(self) -> Iterator[M]:
        """Within the context, the model has all its weights on this process, for inference in the run's precision."""
        if isinstance(self.parallel, FSDPModule):
            self.parallel.unshard()
        try:
            with self.autocast():
                yield self.model
        finally:
            if isinstance(self.parallel, FSDPModule):
                self.parallel.reshard()

    def save(self, folder: Path, writer: Writer | None = None) -> None:
        """Write the full weights; every process must call it, the main one writes.

        From a GPU, a `writer` writes them while the next steps are made.
        """
        tensors = self.part("weights")
        if not self.processes.is_main:
            return
        if writer is None or self.processes.device.type == "cpu":
            save_model(folder, self.model, tensors)
        else:
            # Before the copies: memory holds one set of them.
            writer.wait()
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            writer.start(lambda: save_model(folder, self.model, copies))

    def part(self, part: str) -> dict[str, Tensor]:
        """Return the full tensors of one of `PARTS`, gathered from all shards; every process must call it."""
        if part == "weights":
            return {name: _gather(weight) for name, weight in self._weights().items()}
        state = self.optimizer.state
        # Before the first step the optimizer has no state.
        return {name: _gather(state[weight][part]) for name, weight in self._weights().items() if weight in state}

    @torch.no_grad()
    def restore(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Restore one of `PARTS` from full tensors; raises ValueError unless each is of a weight and of its shape."""
        weights = self._weights()
        wrong = [name for name, tensor in tensors.items() if name not in weights or weights[name].shape != tensor.shape]
        if wrong or (part == "weights" and len(tensors) < len(weights)):
            raise ValueError(f"its {part} are not those of the model")
        for name, tensor in tensors.items():
            own = weights[name]
            if part == "weights":
                own.copy_(_shard_like(own, tensor))
                if own in self.optimizer.copies:
                    self.optimizer.copies[own].copy_(own)
            else:
                self.optimizer.state[own][part] = _shard_like(own, tensor)

    def counters(self) -> dict[str, Any]:
        """Return the state for a checkpoint besides tensors."""
        return {"steps": self.steps, "skipped": self.skipped, "schedule": self.schedule.state_dict()}

    def restore_counters(self, counters: Mapping[str, Any]) -> None:
        """Restore what `counters` returned; call it after the tensors are restored.

        Raises ValueError unless they are whole numbers.
        """
        # The rest of the schedule's state follows from the config.
        made = {key: counters["schedule"][key] for key in ("last_epoch", "_step_count")}
        self.steps, self.skipped = counters["steps"], counters["skipped"]
        if not all(type(number) is int and number >= 0 for number in (self.steps, self.skipped, *made.values())):
            raise ValueError("its counters are not whole numbers")
        rates = [
            base * scale(made["last_epoch"])
            for base, scale in zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        ]
        self.schedule.load_state_dict(self.schedule.state_dict() | made | {"_last_lr": rates})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.optimizer.restore_made(self.steps)

    def _weights(self) -> dict[str, Tensor]:
        """The optimizer's weights by their names in the plain model, also if it is wrapped or sharded."""
        weights: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        return {name: self._originals.get(weight, weight) for name, weight in weights.items()}

    @property
    def _completes_step(self) -> bool:
        """Whether the next batch is the last one of its step."""
        return (self._batches + 1) % self.compute.accumulate == 0

    def _update(self, loss: Tensor) -> None:
        """Make an optimizer step with the gradients, unless loss or gradients of a process are not finite."""
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        norms = _norms(list(gradients.values()))
        norm = norms.norm()
        is_bad = self.processes.highest((~(norm.isfinite() & loss.isfinite())).float())
        skip = torch.maximum(is_bad, self._stops)
        if self.on_nonfinite == "stop":
            # A GPU makes no step after one that stops the run, which is found out later.
            self._stops.copy_(skip)
        scale = None
        if self.clip_gradients is not None:
            scale = (self.clip_gradients / (norm + 1e-6)).clamp(max=1.0)
            clipped = [p for p in self.model.parameters() if p not in self._originals]
            clip_grads_with_norm_(clipped, self.clip_gradients, norm)
        self.optimizer.update(skip, scale)
        self._named, self.outcome = list(gradients), torch.cat([torch.stack([loss.float(), is_bad]), norms])

    def _refuse(self, loss: float, norms: Sequence[float], clips: Sequence[str]) -> NoReturn:
        """Raise `UserError` on every process about a step whose loss or gradients are not finite."""
        bad = [name for name, norm in zip(self._named, norms, strict=True) if not math.isfinite(norm)]
        losses = self.processes.gather(loss)
        shares = self.processes.gather(list(clips))
        # The clips of processes whose loss is not finite; if there are none, all clips of the batch.
        concerned = [
            clip for own, share in zip(losses, shares, strict=True) if not math.isfinite(own) for clip in share
        ]
        concerned = concerned or [clip for share in shares for clip in share]
        raise UserError(
            f"step {self.steps + self.skipped + 1}: found a loss of {', '.join(f'{each:g}' for each in losses)} and "
            f"gradients that are not finite in {_first_names(bad)}; clips {_first_names(concerned)}. The weights are "
            "unchanged, and the last checkpoint is intact; lower the learning rate, set clip_gradients, check these "
            "clips, or skip such steps with safety.on_nonfinite=skip"
        )

    @contextmanager
    def _unshared_gradients(self) -> Iterator[None]:
        """Within the context, gradients stay on each process; they are averaged with those of the step's last batch."""
        if isinstance(self.parallel, DistributedDataParallel):
            with self.parallel.no_sync():
                yield
        elif isinstance(self.parallel, FSDPModule):
            self.parallel.set_requires_gradient_sync(False)
            yield
            self.parallel.set_requires_gradient_sync(True)
        else:
            yield


def _copy_in_bfloat16(model: nn.Module) -> dict[Tensor, nn.Parameter]:
    """Let a model compute with bfloat16 copies of its large matrices; return the originals by their copies."""
    originals: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        if type(module) is FastLinear and module.weight.numel() >= COPIED:
            copy = nn.Parameter(module.weight.detach().bfloat16(), requires_grad=module.weight.requires_grad)
            originals[copy] = cast(nn.Parameter, module.weight)
            module.weight = copy
    return originals


def count_steps(batches: int, compute: ComputeConfig) -> int:
    """Return how many steps a run with `batches` batches makes; raise `UserError` if it makes none."""
    steps = batches // compute.accumulate
    if steps == 0:
        raise UserError(
            f"compute.accumulate: found {compute.accumulate}, but the run has {batches} batches in all; "
            "wanted fewer, or more train.epochs"
        )
    return steps


def _parallelize(model: nn.Module, compute: ComputeConfig, processes: Processes) -> nn.Module:
    if processes.world_size == 1:
        return model
    if compute.strategy == "fsdp":
        _complete_cpu_streams()
        # Shards the model's weights in place.
        fully_shard(model, mesh=processes.mesh(), reshard_after_forward=False)
        return model
    devices = [processes.device] if processes.device.type == "cuda" else None
    # Gradients are views of the all-reduce buckets, so that they are not stored twice.
    parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    if compute.compress_gradients:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


def _complete_cpu_streams() -> None:
    """Give the streams of a CPU, which do nothing, what FSDP calls of them and torch 2.6 lacks."""
    for name in ("record_event", "wait_event"):
        if not hasattr(torch.cpu.Stream, name):
            setattr(torch.cpu.Stream, name, lambda *_: None)


def _averages_gradients(processes: Processes) -> bool:
    """Whether gradients under FSDP are means over the processes: they are sums with gloo and torch 2.6."""
    # Of one weight, which is set without a random number.
    probe = nn.PReLU(device=processes.device)
    fully_shard(probe, mesh=processes.mesh())
    probe(-torch.ones(1, device=processes.device)).sum().backward()
    gradient = probe.weight.grad
    return gradient is not None and _gather(gradient).item() == -1


def _checkpoint_activations(model: nn.Module) -> None:
    """Recompute the hidden activations of feed-forward networks in the backward pass instead of storing them."""
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
        check_fn=lambda module: isinstance(module, MLP | nn.Sequential),
    )


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"


def _shard_like(own: Tensor, whole: Tensor) -> Tensor:
    """Shard a full tensor as `own` is sharded, on its device."""
    whole = whole.to(own.device)
    return distribute_tensor(whole, own.device_mesh, own.placements) if isinstance(own, DTensor) else whole


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each gradient in float32: [gradients]."""
    single = [gradient for gradient in gradients if gradient.dtype != torch.bfloat16]
    # At once: one computation for each would take a GPU longer.
    of_single = iter(torch._foreach_norm(single) if single else ())
    norms = [
        gradient.norm(dtype=torch.float32) if gradient.dtype == torch.bfloat16 else next(of_single)
        for gradient in gradients
    ]
    return _gather(torch.stack(norms))


def _gather(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def build_optimizer(
    weights: Iterable[Tensor], config: OptimizerConfig, steps: int, copies: Mapping[Tensor, Tensor] = NO_COPIES
) -> tuple[MixedAdamW, LambdaLR]:
    """Build AdamW and its schedule over `steps`: linear warm-up, then linear decay to 0 (advance it every step).

    `copies` are the bfloat16 copies of some of the weights.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    decayed, plain = [w for w in trained if w.dim() > 1], [w for w in trained if w.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = MixedAdamW(groups, config.learning_rate, copies)
    warmup = max(1, round(config.warmup * steps))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return optimizer, LambdaLR(optimizer, scale)


def learning_rate(schedule: LambdaLR) -> float:
    """The learning rate of the next step."""
    return float(schedule.get_last_lr()[0])
