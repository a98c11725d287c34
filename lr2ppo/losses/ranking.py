"""Losses of stage 1, over lists of graded labels."""

import torch.nn.functional as F
from torch import Tensor


def smooth_l1_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, beta: float = 0.3) -> Tensor:
    """Stage 1: mean smooth-L1 distance between scores and grades.

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding.
    """
    loss = F.smooth_l1_loss(scores, grades.to(scores.dtype), beta=beta, reduction="none")
    return loss.mean() if mask is None else loss[mask].mean()
