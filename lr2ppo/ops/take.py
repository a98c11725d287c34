"""Look up some values of each row, such as the scores of a pair's labels."""

import torch.nn.functional as F
from torch import Tensor


def take(values: Tensor, positions: Tensor) -> Tensor:
    """Return the values at some positions of each row: values [B, L], positions [B, N] long -> [B, N]."""
    if not values.is_cuda:
        return values.gather(1, positions)
    # A GPU adds up the gradient of `gather` in another order each time.
    chosen = F.one_hot(positions, values.shape[1]).bool()
    return values.unsqueeze(1).where(chosen, 0.0).sum(-1)
