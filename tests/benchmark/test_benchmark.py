"""The benchmark: its figures, and the published computation gives the same results."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lr2ppo.benchmark.measure import count_flops, gradient_bytes
from lr2ppo.benchmark.steps import Shape, encode_slots, make_step, optimizer_bytes, random_batch, score_slots
from lr2ppo.cli import main
from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.distributed.processes import Processes
from lr2ppo.models import LabelEncoder, PartialOrderModel, RelevanceRanker
from tests.conftest import REPOSITORY

SHAPE = Shape(clips=2, pairs=9, labels=5, tokens=6, frames=3, text_width=16, image_width=16)
TRUNK = ModelConfig(head="flatten", attention="published", width=16, heads=8, dropout=0.0, text_tokens=6, frames=3)


@pytest.fixture(autouse=True)
def _quick_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine's rates on little, from the repository's root, where the presets are."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("lr2ppo.benchmark.measure.SQUARE", 64)
    monkeypatch.setattr("lr2ppo.benchmark.measure.COPIED_BYTES", 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("stage", ["pointwise", "reward", "ppo"])
def test_a_line_has_times_rates_work_and_memory(stage: str, plain: bool, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--labels=4", "--tokens=5", "--steps=1", "--preset=mini", "data.frames=2", "train.clips_per_batch=2"]
    main(["benchmark", stage, *options, *["--plain"] * plain])
    line = json.loads(capsys.readouterr().out)
    assert (line["stage"], line["way"], line["tokens"]) == (stage, "plain" if plain else "ours", 5)
    assert line["matrix_gflop_per_step"] > 0
    assert line["seconds_per_step"] > 0
    assert line["peak_memory_gib"] > 0
    by_products = line["matrix_gflop_per_step"] / line["machine_gflop_per_second"]
    assert line["floor_seconds"] > 0.9 * by_products
    assert line["share_of_floor"] == pytest.approx(line["floor_seconds"] / line["seconds_per_step"], rel=0.2)


@pytest.mark.parametrize(("stage", "trained"), [("pointwise", 1), ("reward", 1), ("ppo", 2)])
def test_the_gradients_of_what_is_trained_are_averaged(stage: str, trained: int, alone: Processes) -> None:
    config = load_config(REPOSITORY / "configs" / "lrmovienet" / f"{stage}.yaml", stage, ["compute.precision=fp32"])
    step = make_step(config, TRUNK, SHAPE, alone, plain=False)
    weights = [sum(weight.numel() for weight in model.parameters()) for model in step.models[:trained]]
    # But for a few biases, which have no effect.
    assert gradient_bytes(step, config.compute) == pytest.approx(4 * sum(weights), rel=0.01)
    halved = config.compute.model_copy(update={"compress_gradients": True})
    assert 2 * gradient_bytes(step, halved) == gradient_bytes(step, config.compute)


def gflop(stage: str, alone: Processes, plain: bool) -> int:
    overrides = [f"train.clips_per_batch={SHAPE.clips}"]
    config = load_config(REPOSITORY / "configs" / "lrmovienet" / f"{stage}.yaml", stage, overrides)
    return count_flops(make_step(config, TRUNK, SHAPE, alone, plain=plain))


def test_the_published_way_does_several_times_the_work(alone: Processes) -> None:
    # 9 pairs of at most 5 labels: 72 slots per clip in stage 2; in stage 3, 4 more per pair by the reward model.
    assert gflop("reward", alone, plain=True) > 8 * gflop("reward", alone, plain=False)
    assert gflop("ppo", alone, plain=True) > 4 * gflop("ppo", alone, plain=False)
    assert gflop("pointwise", alone, plain=True) >= gflop("pointwise", alone, plain=False)


def test_the_optimizer_moves_seven_floats_a_weight_of_what_is_trained() -> None:
    ranker, reward_model = RelevanceRanker(TRUNK), PartialOrderModel(TRUNK)
    weights = [sum(parameter.numel() for parameter in model.parameters()) for model in (ranker, reward_model)]
    moved = [optimizer_bytes(stage, TRUNK) for stage in ("pointwise", "reward", "ppo")]
    assert moved == [28 * weights[0], 28 * weights[1], 28 * sum(weights)]


@torch.no_grad()
def test_the_published_way_encodes_and_scores_as_ours_does() -> None:
    torch.manual_seed(0)
    batch = random_batch(SHAPE, whole_lists=False)
    # Padded labels are not read: the published computation has none.
    encoder = LabelEncoder(TRUNK).eval()
    slots = batch.pairs.flatten(1)
    ours = encoder(batch.text, batch.frames).gather(1, _as_index(slots, TRUNK.width))
    torch.testing.assert_close(encode_slots(encoder, batch, slots), ours, rtol=1e-4, atol=1e-5)
    model = PartialOrderModel(TRUNK).eval()
    orders = torch.cat([batch.pairs, batch.pairs.flip(-1)], dim=-1)
    scores = model(batch.text, batch.frames, orders)
    torch.testing.assert_close(score_slots(model, batch, orders), scores, rtol=1e-4, atol=1e-5)


def _as_index(slots: Tensor, width: int) -> Tensor:
    return slots.unsqueeze(-1).expand(-1, -1, width)


def test_a_profile_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: Sequence[str] = ["pointwise", "--labels=3", "--tokens=4", "--steps=1", "--preset=mini", "data.frames=2"]
    main(["benchmark", *options, "--profile", str(tmp_path / "trace.json")])
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pointwise", "reward", "ppo"])
def test_a_real_run_is_timed_beside_its_bare_step(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--labels=10", "--tokens=20", "--steps=6", "--clips=32", "--preset=mini", "--model=model.width=128"]
    main(["benchmark", "run", stage, *options, "data.frames=4", "train.clips_per_batch=8"])
    line = json.loads(capsys.readouterr().out)
    assert (line["stage"], line["keep"], line["run_clips"]) == (stage, "auto", 32)
    assert line["steps"] >= 4
    assert line["over_bare"] == pytest.approx(line["seconds_per_step"] / line["bare_seconds_per_step"], rel=0.01)
    # Features in memory leave a step to its computation.
    assert line["seconds_spent"]["reading"] < 0.25 * line["steps"] * line["seconds_per_step"]


def test_a_real_run_needs_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["run"], "run: found '', wanted a stage after it: one of pointwise, reward, ppo"),
        (["run", "pointwize"], "run: found 'pointwize'"),
        (["run", "reward", "--plain"], "--plain, --profile: found one with run STAGE"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["benchmark", *options])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
