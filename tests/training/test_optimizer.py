"""AdamW's parameter groups and the learning-rate schedule."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig, OptimizerConfig
from lr2ppo.models import PartialOrderModel
from lr2ppo.training.learner import build_optimizer, learning_rate
from tests.conftest import REPOSITORY

MODERATE = settings(deadline=None, max_examples=60)


def config(rate: float = 1.0, decay: float = 0.01, warmup: float = 0.1) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=rate, weight_decay=decay, warmup=warmup)


def rates_of_a_run(steps: int, settings: OptimizerConfig) -> list[float]:
    """The learning rate of every step, and the one left after the last."""
    optimizer, schedule = build_optimizer(nn.Linear(2, 2).parameters(), settings, steps)
    rates = [learning_rate(schedule)]
    for _ in range(steps):
        assert all(group["lr"] == rates[-1] for group in optimizer.param_groups)
        optimizer.step()
        schedule.step()
        rates.append(learning_rate(schedule))
    return rates


def test_stage_3_of_lrmovienet_stays_inside_its_warm_up() -> None:
    actor = load_config(REPOSITORY / "configs" / "lrmovienet" / "ppo.yaml", "ppo").train.actor
    assert actor.schedule_updates is not None
    optimizer, schedule = build_optimizer(nn.Linear(2, 2).parameters(), actor, actor.schedule_updates)
    for update in range(1, 413):
        assert learning_rate(schedule) == pytest.approx(1e-3 * update / 34_130)
        optimizer.step()
        schedule.step()


def make_model() -> PartialOrderModel:
    return PartialOrderModel(ModelConfig(head="pooled", attention="scaled", width=8, heads=2, dropout=0.0))


def test_biases_and_norms_are_not_decayed_and_all_else_is() -> None:
    model = make_model()
    optimizer, _ = build_optimizer(model.parameters(), config(decay=0.25), steps=10)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, kind = name.rpartition(".")
        plain = kind == "bias" or isinstance(modules[owner], nn.LayerNorm)
        assert decay_of[id(parameter)] == (0.0 if plain else 0.25), name


def test_weight_decay_shrinks_only_matrices() -> None:
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, _ = build_optimizer(model.parameters(), config(rate=0.5, decay=0.1, warmup=0.0), steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1.0 if parameter.dim() == 1 else 1 - 0.5 * 0.1
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


def test_every_trained_parameter_is_in_one_group_and_frozen_ones_in_none() -> None:
    model = make_model()
    model.encoder.requires_grad_(False)
    optimizer, _ = build_optimizer(model.parameters(), config(), steps=10)
    found = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert 0 < len(found) < len(list(model.parameters()))


def test_the_rate_warms_up_to_its_peak_and_falls_to_0() -> None:
    expected = [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0]
    assert rates_of_a_run(10, config(warmup=0.2)) == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert rates_of_a_run(4, config(rate=3.0, warmup=0.0)) == pytest.approx([3.0, 3.0, 2.0, 1.0, 0.0])


@MODERATE
@given(st.integers(1, 200), st.floats(0, 1), st.floats(1e-6, 1e-2))
def test_every_schedule_rises_then_falls_in_a_straight_line(steps: int, warmup: float, peak: float) -> None:
    rates = rates_of_a_run(steps, config(rate=peak, warmup=warmup))
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert all(rate > 0 for rate in rates[:-1]), "no step is lost"
    assert rates[-1] == 0.0
    rises = {round((later - earlier) / peak, 9) for earlier, later in pairwise(rates[: top + 1])}
    falls = {round((later - earlier) / peak, 9) for earlier, later in pairwise(rates[top + 1 :])}
    assert len(rises) <= 1
    assert len(falls) <= 1
    assert abs(top + 1 - max(1, warmup * steps)) <= 1


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_a_step_or_two_trains(steps: int) -> None:
    rates = rates_of_a_run(steps, config(warmup=0.1))
    assert rates[0] == 1.0
    assert rates[-1] == 0.0


def test_a_rate_of_0_leaves_the_model_as_it_was() -> None:
    model = make_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, _ = build_optimizer(model.parameters(), config(rate=0.0, decay=0.5), steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
