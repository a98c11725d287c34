"""The policies of stage 3: what a rollout collects, which models learn from it, and with which loss."""

from collections.abc import Mapping
from typing import Any

from lr2ppo.policies.exact import ExactPolicy
from lr2ppo.policies.partial_order import PartialOrderPolicy
from lr2ppo.policies.policy import Policy
from lr2ppo.policies.sampled_lists import ListPolicy

# By `policy.name`.
POLICIES: Mapping[str, type[Policy[Any]]] = {
    "partial_order": PartialOrderPolicy,
    "exact": ExactPolicy,
    "plackett_luce": ListPolicy,
    "grpo": ListPolicy,
    "reinforce": ListPolicy,
}
