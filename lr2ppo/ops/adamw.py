"""AdamW for float32 weights, some of which have bfloat16 copies that the model computes with."""

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lr2ppo.ops.linear import recycled

NO_COPIES: Mapping[Tensor, Tensor] = MappingProxyType({})


class MixedAdamW(torch.optim.AdamW):
    """torch's fused AdamW; a weight with a bfloat16 copy takes the copy's gradient, and the copy follows the weight.

    On a GPU, a kernel updates weights with copies in one pass: it reads the gradient as it is and writes the copy.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        learning_rate: float,
        copies: Mapping[Tensor, Tensor] = NO_COPIES,
        by_kernel: bool = True,
    ) -> None:
        """`copies` are the bfloat16 copies of some weights of the `groups`, which share a learning rate."""
        groups = list(groups)
        device = next(weight.device for group in groups for weight in group["params"])
        on_gpu = device.type == "cuda"
        super().__init__(groups, lr=learning_rate, fused=True, capturable=on_gpu)
        self.copies = dict(copies)
        self._by_kernel = by_kernel and on_gpu and has_triton()
        # A GPU reads the rate from its own memory, so that a replayed step follows the schedule.
        self._rate = torch.tensor(learning_rate, device=device) if on_gpu else None
        # Steps made, and betas: in double precision, as torch has them.
        self._made = torch.zeros((), dtype=torch.float64, device=device)
        self._betas = torch.tensor(self.defaults["betas"], dtype=torch.float64, device=device)

    def restore_made(self, steps: int) -> None:
        """Restore the number of steps made, after the moments of all weights."""
        self._made.fill_(steps)
        for state in self.state.values():
            state["step"] = self._made.float()

    def follow_schedule(self) -> None:
        """Give a GPU the learning rate of the next step."""
        if self._rate is not None:
            self._rate.fill_(self.param_groups[0]["lr"])

    @torch.no_grad()
    def update(self, skip: Tensor, scale: Tensor | None = None) -> None:
        """Make a step with all gradients, those of copies times `scale`; none if `skip`, a float scalar, is not 0."""
        if self._rate is None:
            self._update(skip, scale)
            return
        if not (skip.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.follow_schedule()
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self._rate
        try:
            self._update(skip, scale)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def _update(self, skip: Tensor, scale: Tensor | None) -> None:
        self._made += 1 - skip
        corrections = (1 - self._betas**self._made).float()
        for group in self.param_groups:
            for weight in group["params"]:
                copy = self.copies.get(weight)
                if copy is None or copy.grad is None:
                    continue
                if self._by_kernel:
                    self._update_by_kernel(weight, copy, group, corrections, skip, scale)
                    continue
                weight.grad = recycled(weight.shape, weight.dtype, weight.device).copy_(copy.grad)
                if scale is not None:
                    weight.grad.mul_(scale)
        # The name of torch's gradient scaler for it.
        self.found_inf = skip
        self.step()
        if not self._by_kernel:
            for weight, copy in self.copies.items():
                copy.copy_(weight)
                weight.grad = None

    def _update_by_kernel(
        self,
        weight: Tensor,
        copy: Tensor,
        group: Mapping[str, Any],
        corrections: Tensor,
        skip: Tensor,
        scale: Tensor | None,
    ) -> None:
        from lr2ppo.ops.adamw_kernel import update_weight

        state = self.state[weight]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        update_weight(
            weight, copy, state["exp_avg"], state["exp_avg_sq"],
            corrections=corrections, skip=skip, scale=scale,
            rate=group["lr"], betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


@cache
def has_triton() -> bool:
    """Whether Triton, which comes with torch for GPUs, is installed."""
    return find_spec("triton") is not None
