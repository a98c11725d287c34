"""Every loss, as pure functions of tensors; imports nothing but torch."""

from lr2ppo.losses.policy import PPOLosses, ppo_losses
from lr2ppo.losses.preference import preference_hinge_loss
from lr2ppo.losses.ranking import smooth_l1_loss

__all__ = ["PPOLosses", "ppo_losses", "preference_hinge_loss", "smooth_l1_loss"]
