"""AdamW with weight decay on weight matrices alone, and the linear schedule."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lr2ppo.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig, steps: int) -> tuple[torch.optim.AdamW, LambdaLR]:
    """An optimizer and its schedule over `steps`: linear warm-up, then linear decay to 0 (advance it every step)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    warmup = max(1, round(config.warmup * steps))

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (steps - step) / max(1, steps - warmup))

    return optimizer, LambdaLR(optimizer, scale)


def learning_rate(schedule: LambdaLR) -> float:
    """The learning rate of the next step."""
    return float(schedule.get_last_lr()[0])
