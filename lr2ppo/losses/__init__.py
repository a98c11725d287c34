"""All losses, as pure functions of tensors; imports only torch.

A config names a loss by its key in one of the tables; its parameters are those of the function.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from lr2ppo.losses.policy import PPOLosses, ppo_losses
from lr2ppo.losses.preference import logistic_preference_loss, preference_hinge_loss
from lr2ppo.losses.ranking import ranknet_loss, smooth_l1_loss

__all__ = [
    "PREFERENCE_LOSSES",
    "RANKING_LOSSES",
    "PPOLosses",
    "logistic_preference_loss",
    "ppo_losses",
    "preference_hinge_loss",
    "ranknet_loss",
    "smooth_l1_loss",
]

# (scores [B, N], grades [B, N], mask [B, N], *parameters, total) -> a scalar.
RANKING_LOSSES: Mapping[str, Callable[..., Tensor]] = {"smooth_l1": smooth_l1_loss, "ranknet": ranknet_loss}
# (chosen [pairs], rejected [pairs], *parameters, total) -> a scalar.
PREFERENCE_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "hinge": preference_hinge_loss,
    "logistic": logistic_preference_loss,
}
