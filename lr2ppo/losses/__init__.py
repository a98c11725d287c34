"""All losses, as pure functions of tensors; imports only torch and `ops.dcg`.

A config names a loss by its key in one of the tables; its parameters are those of the function.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from lr2ppo.losses.listwise import listmle_loss, listnet_loss, softmax_loss
from lr2ppo.losses.pairwise import lambdarank_loss, ndcg_loss2pp_loss, ranknet_loss
from lr2ppo.losses.pointwise import ordinal_loss, smooth_l1_loss
from lr2ppo.losses.policy import (
    ExactLosses,
    PPOLosses,
    clipped_policy_loss,
    exact_policy_loss,
    list_kl,
    list_log_probabilities,
    ppo_losses,
    reinforce_loss,
)
from lr2ppo.losses.preference import (
    distillation_loss,
    dpo_loss,
    ipo_loss,
    logistic_preference_loss,
    preference_hinge_loss,
)
from lr2ppo.losses.smooth_ndcg import approx_ndcg_loss, neural_ndcg_loss

__all__ = [
    "PREFERENCE_LOSSES",
    "RANKING_LOSSES",
    "RELATIVE_LOSSES",
    "ExactLosses",
    "PPOLosses",
    "clipped_policy_loss",
    "distillation_loss",
    "exact_policy_loss",
    "list_kl",
    "list_log_probabilities",
    "ppo_losses",
    "reinforce_loss",
    "smooth_l1_loss",
]

# (scores [B, N], grades [B, N], mask [B, N], *parameters, total) -> a scalar.
RANKING_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "smooth_l1": smooth_l1_loss,
    "ordinal": ordinal_loss,
    "ranknet": ranknet_loss,
    "lambdarank": lambdarank_loss,
    "ndcg_loss2pp": ndcg_loss2pp_loss,
    "listnet": listnet_loss,
    "listmle": listmle_loss,
    "softmax": softmax_loss,
    "approx_ndcg": approx_ndcg_loss,
    "neural_ndcg": neural_ndcg_loss,
}
# (chosen [pairs], rejected [pairs], *parameters, total) -> a scalar.
PREFERENCE_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "hinge": preference_hinge_loss,
    "logistic": logistic_preference_loss,
}
# As above, of a ranker's scores minus those of the ranker that it started from.
RELATIVE_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
}
