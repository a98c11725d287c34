"""The training steps that `lr2ppo.benchmark` times: the stages' steps, ours and as published."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig, PointwiseConfig, PPOConfig, PPOLoss, RewardConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import PREFERENCE_LOSSES, RANKING_LOSSES
from lr2ppo.models import LabelEncoder, PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import model_shapes, new_model
from lr2ppo.ops.linear import FastLinear, use_fast_linear
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.ops.packing import Packing
from lr2ppo.policies.frozen_reward import FrozenReward
from lr2ppo.policies.partial_order import PairRollout, PartialOrderPolicy, pair_losses
from lr2ppo.stages.pointwise import learn_lists
from lr2ppo.stages.reward import learn_pairs
from lr2ppo.training.learner import Learner
from lr2ppo.training.replay import Replayed

# Of the stages that are published too.
TimedConfig = PointwiseConfig | RewardConfig | PPOConfig
FLOAT_BYTES = 4
SCHEDULE = 1000
# Slots per pair that the published program encodes: two orders of four in stage 2; in stage 3, two by the actor, four
# by the reward model and two by the critic in the rollout, and two by actor and critic each in the update.
PLAIN_SLOTS = {"reward": 8, "ppo": 12}


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch of random features of one process."""

    clips: int
    pairs: int
    labels: int
    tokens: int
    frames: int
    text_width: int
    image_width: int

    @classmethod
    def of(cls, config: TimedConfig, model: ModelConfig, labels: int, tokens: int | None) -> Self:
        pairs = labels if isinstance(config, PointwiseConfig) else config.train.pairs_per_clip
        widths = model.text_width or model.width, model.image_width or model.width
        return cls(
            config.train.clips_per_batch, pairs, labels, tokens or model.text_tokens, config.data.frames, *widths
        )

    def pair_positions(self) -> Tensor:
        """Draw random pairs of different labels for each clip with a fixed seed: [clips, pairs, 2]."""
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(self.labels, (self.clips, self.pairs), generator=generator)
        offset = torch.randint(1, self.labels, (self.clips, self.pairs), generator=generator)
        return torch.stack([first, (first + offset) % self.labels], dim=-1)

    def encodings(self, stage: str, plain: bool) -> int:
        """The number of labels encoded in a step, summed over forward passes."""
        if stage == "pointwise":
            return self.clips * self.labels
        if plain:
            return self.clips * self.pairs * PLAIN_SLOTS[stage]
        return self._count_distinct() * (4 if stage == "ppo" else 1)

    def bytes_read(self, stage: str, plain: bool) -> int:
        """The bytes of features that a step reads: each label's rows once, or once per slot, and the frames."""
        label = self.tokens * self.text_width * FLOAT_BYTES
        frames = self.frames * self.image_width * FLOAT_BYTES
        if stage == "pointwise":
            return self.clips * (self.labels * label + frames)
        if plain:
            return self.clips * self.pairs * (2 * label + frames)
        return self._count_distinct() * label + self.clips * frames

    def _count_distinct(self) -> int:
        return sum(len(pairs.unique()) for pairs in self.pair_positions())


@dataclass(frozen=True)
class Step:
    """A function that makes one training step on random features, and the models that it uses."""

    run: Callable[[], None]
    models: Sequence[nn.Module]


def make_step(config: TimedConfig, trunk: ModelConfig, shape: Shape, processes: Processes, *, plain: bool) -> Step:
    """Build the training step of a stage."""
    torch.manual_seed(0)
    if not isinstance(config, PPOConfig):
        # As the stages do; in stage 3 fragmentation grows to 4 GiB.
        keep_freed_memory(processes.device)
    trunk = trunk.model_copy(update={"frames": shape.frames})
    batch = random_batch(shape, whole_lists=isinstance(config, PointwiseConfig)).to(processes.device)
    if isinstance(config, PointwiseConfig):
        ranker = Learner(new_model(RelevanceRanker, trunk), config.train, SCHEDULE, config.compute, processes)
        loss = partial(RANKING_LOSSES[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
        return repeat(partial(learn_lists_plain if plain else learn_lists, ranker, loss), batch, [ranker])
    if isinstance(config, RewardConfig):
        reward_model = Learner(new_model(PartialOrderModel, trunk), config.train, SCHEDULE, config.compute, processes)
        loss = partial(PREFERENCE_LOSSES[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
        return repeat(partial(learn_pairs_plain if plain else learn_pairs, reward_model, loss), batch, [reward_model])
    trunk = trunk.model_copy(update={"dropout": config.train.dropout})
    frozen = use_fast_linear(new_model(PartialOrderModel, trunk)).to(processes.device).eval().requires_grad_(False)
    # The clips have only the labels of the batch.
    vectors = None if plain else torch.randn(shape.clips * batch.labels.shape[1], trunk.width).numpy()
    frozen_reward = FrozenReward(frozen, [batch.labels.shape[1]] * shape.clips, vectors)
    actor = Learner(new_model(RelevanceRanker, trunk), config.train.actor, SCHEDULE, config.compute, processes)
    critic_optimizer = config.train.critic or config.train.actor
    critic = Learner(new_model(PartialOrderModel, trunk), critic_optimizer, SCHEDULE, config.compute, processes)
    # A run scores its clips by the start once, before its first step.
    start = torch.zeros(batch.labels.shape, device=processes.device)
    policy = PartialOrderPolicy(actor, critic, frozen_reward, lambda _: start, config.train, config.loss or PPOLoss())
    # As in an update of several steps, each of which needs a forward pass.
    policy.reuses_rollout = False
    models = [actor.model, critic.model, frozen_reward.model]
    if plain:
        return repeat(partial(learn_orders_plain, policy), batch, [actor, critic], models)

    def step() -> None:
        policy.learn(policy.roll_out(batch), is_first=True)

    return Step(step, models)


def repeat(
    learn: Callable[[ClipBatch], dict[str, Tensor]],
    batch: ClipBatch,
    learners: Sequence[Learner[Any]],
    models: Sequence[nn.Module] = (),
) -> Step:
    """Make the step that learns from a batch."""
    learn = Replayed(learn, *learners)

    def step() -> None:
        learn(batch)
        for learner in learners:
            learner.count()

    return Step(step, models or [learner.model for learner in learners])


@contextmanager
def torch_products(models: Sequence[nn.Module], wanted: bool = True) -> Iterator[None]:
    """Within the context, the models' linear layers compute as `torch.nn.Linear` does."""
    modules = (module for model in models for module in model.modules())
    fast: list[nn.Module] = [module for module in modules if wanted and type(module) is FastLinear]
    for module in fast:
        module.__class__ = nn.Linear
    try:
        yield
    finally:
        for module in fast:
            module.__class__ = FastLinear


def optimizer_bytes(stage: str, trunk: ModelConfig) -> int:
    """The bytes AdamW moves in a step: it reads weights, gradients and two moments, and writes all but gradients."""
    shapes = [] if stage == "reward" else list(model_shapes(RelevanceRanker, trunk).values())
    shapes += [] if stage == "pointwise" else list(model_shapes(PartialOrderModel, trunk).values())
    weights = sum(shape.numel() for shape in shapes)
    return 7 * FLOAT_BYTES * weights


def random_batch(shape: Shape, whole_lists: bool) -> ClipBatch:
    """Build a batch of random features and grades: whole lists, or only the labels in each clip's random pairs."""
    pairs = shape.pair_positions()
    positions = [torch.arange(shape.labels) if whole_lists else each.unique() for each in pairs]
    most = max(len(each) for each in positions)
    labels = torch.arange(most).expand(shape.clips, -1)
    mask = labels < torch.tensor([len(each) for each in positions]).unsqueeze(1)
    text_mask = mask.unsqueeze(-1).expand(-1, -1, shape.tokens)
    if not whole_lists:
        pairs = torch.stack([torch.searchsorted(own, each) for own, each in zip(positions, pairs, strict=True)])
    return ClipBatch(
        ids=tuple(map(str, range(shape.clips))),
        clips=torch.arange(shape.clips),
        labels=labels,
        text=torch.randn(shape.clips, most, shape.tokens, shape.text_width),
        text_mask=text_mask,
        packing=Packing.of(text_mask, steady=True),
        label_mask=mask,
        label_span=torch.tensor([min(1, shape.tokens - 1), min(2, shape.tokens)]).expand(shape.clips, most, 2),
        frames=torch.randn(shape.clips, shape.frames, shape.image_width),
        frame_mask=torch.ones(shape.clips, shape.frames, dtype=torch.bool),
        grades=torch.randint(3, (shape.clips, most)).float(),
        listed=labels,
        listed_mask=mask,
        pairs=pairs,
        pair_mask=torch.ones(pairs.shape[:2], dtype=torch.bool),
        real_pairs=None,
        first_is_better=torch.rand(pairs.shape[:2]) < 0.5,
        seeds=torch.zeros(shape.clips, dtype=torch.long),
    )


def learn_lists_plain(
    learner: Learner[RelevanceRanker], ranking_loss: Callable[..., Tensor], batch: ClipBatch
) -> dict[str, Tensor]:
    with learner.autocast():
        scores = learner.model.score(encode_slots(learner.model.encoder, batch, batch.listed))
        loss = ranking_loss(scores, batch.grades, batch.listed_mask)
    learner.backward(loss)
    return {"loss": loss.detach()}


def learn_pairs_plain(
    learner: Learner[PartialOrderModel], preference_loss: Callable[..., Tensor], batch: ClipBatch
) -> dict[str, Tensor]:
    with learner.autocast():
        better = torch.where(batch.first_is_better.unsqueeze(-1), batch.pairs, batch.pairs.flip(-1))
        chosen, rejected = (
            score_slots(learner.model, batch, torch.cat([batch.pairs, order], dim=-1)).flatten()
            for order in (better, better.flip(-1))
        )
        loss = preference_loss(chosen, rejected)
    learner.backward(loss)
    return {"loss": loss.detach()}


def learn_orders_plain(policy: PartialOrderPolicy, batch: ClipBatch) -> dict[str, Tensor]:
    actor, critic = policy.actor, policy.critic

    def forward() -> tuple[Tensor, Tensor]:
        vectors = encode_slots(actor.model.encoder, batch, batch.pairs.flatten(1))
        return actor.model.score(vectors).view(batch.pairs.shape), score_slots(critic.model, batch, batch.pairs)

    with torch.no_grad(), actor.autocast():
        old_scores, old_value = forward()
        proposed = old_scores.argsort(dim=-1, descending=True, stable=True)
        order = torch.cat([batch.pairs, batch.pairs.gather(-1, proposed)], dim=-1)
        reward = score_slots(policy.frozen_reward.model, batch, order)
    with actor.autocast():
        scores, value = forward()
    rollout = PairRollout(batch, old_scores, proposed, reward, old_value)
    losses = pair_losses(scores, value, rollout, policy.loss, actor.processes)
    actor.backward(losses.policy_loss)
    critic.backward(losses.value_loss)
    return {"loss": losses.policy_loss.detach()}


def encode_slots(encoder: LabelEncoder, batch: ClipBatch, slots: Tensor) -> Tensor:
    """Encode each slot `[B, S]` separately with a copy of the clip's frames, as published: [B, S, D]."""
    clips = torch.arange(len(batch), device=slots.device).unsqueeze(1).expand_as(slots).flatten()
    text = batch.text[clips, slots.flatten()].unsqueeze(1)
    vectors = encoder(text, batch.frames[clips])
    encoded: Tensor = vectors.view(*slots.shape, -1)
    return encoded


def score_slots(model: PartialOrderModel, batch: ClipBatch, order: Tensor) -> Tensor:
    """Score orders `[B, P, S]` with each slot encoded separately: [B, P]."""
    vectors = encode_slots(model.encoder, batch, order.flatten(1))
    own_slots = torch.arange(order[0].numel(), device=order.device).view(1, *order.shape[1:])
    return model.score_orders(vectors, own_slots.expand(len(batch), -1, -1))
