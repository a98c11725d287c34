"""Direct fine-tuning learns what people prefer from their pairs, and later stages can start from it."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lr2ppo.config.load import load_config
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.runs.lookup import read_finished, read_inputs
from lr2ppo.stages import finetune
from lr2ppo.training.trained_on import find_trained_on
from tests.stages.test_stages import PRESET, Overrides, rows, run_pointwise, run_ppo, run_reward


def run_finetune(processes: Processes, overrides: list[str], name: str = "a") -> Path:
    settings = ["train.epochs=8", "train.clips_per_batch=4", "train.learning_rate=2e-3", "data.frames=3"]
    config = load_config(PRESET / "finetune.yaml", "finetune", [*settings, *overrides, f"name={name}"])
    torch.manual_seed(config.seed)
    finetune.train(config, processes, fresh=False)
    return config.logs / "finetune" / name


@pytest.mark.slow
def test_each_loss_turns_the_order_of_the_source_into_that_of_the_target(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    run_pointwise(alone, tiny_overrides())
    # The margin that ipo asks for must outweigh the start's, which is the wrong way round.
    own = {"hinge": ["loss.margin=1"], "logistic": [], "dpo": [], "ipo": ["loss.beta=0.1"]}
    for loss, parameters in own.items():
        logs = run_finetune(alone, tiny_overrides(f"loss.name={loss}", *parameters), loss)
        curve = [row["validation/ndcg"] for row in rows(logs.parents[1], "finetune", loss)]
        assert curve[0] < 0.7
        assert curve[-1] > 0.95
        assert rows(logs.parents[1], "finetune", loss)[-1]["train/accuracy"] > 0.95


@pytest.mark.slow
def test_graded_clips_are_trained_on_beside_the_pairs_as_their_weight_says(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    # The grades of the source say the opposite of the pairs of the target.
    for weight, stays in ((0.0, False), (100.0, True)):
        graded = ("train.graded=first_stage_data.json", f"train.graded_weight={weight}")
        folder = run_finetune(alone, tiny_overrides(*graded), f"of-{weight:.0f}")
        ndcg = rows(logs, "finetune", folder.name)[-1]["validation/ndcg"]
        assert (ndcg < 0.7, ndcg > 0.95) == (stays, not stays)
    trained_on, source = (set(find_trained_on(run, logs).clips) for run in (folder, logs / "pointwise" / "a"))
    assert trained_on > source
    assert "graded" in read_inputs(folder)


def test_graded_clips_that_are_the_validation_clips_are_warned_of(alone: Processes, tiny_overrides: Overrides) -> None:
    run_pointwise(alone, tiny_overrides())
    folder = run_finetune(alone, tiny_overrides("train.graded=val_data.json", "train.epochs=1"))
    warning = "13 of the validation clips are trained on, such as validation-0"
    assert warning in (folder / "train.log").read_text(encoding="utf-8")
    finished = read_finished(folder)
    assert finished is not None
    assert finished["warnings"] == [warning]


def test_a_loss_relative_to_the_start_begins_where_every_order_is_as_likely_as_there(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    run_pointwise(alone, tiny_overrides("model.dropout=0"))
    still = ("train.learning_rate=0", "train.epochs=1", "loss.name=dpo", "loss.beta=0.3")
    folder = run_finetune(alone, tiny_overrides(*still))
    assert rows(folder.parents[1], "finetune")[-1]["train/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_a_run_that_finds_nothing_better_keeps_the_ranker_it_started_from(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    folder = run_finetune(alone, tiny_overrides("train.learning_rate=0", "train.epochs=1"))
    before, after = (load_file(run / "best" / "model.safetensors") for run in (logs / "pointwise" / "a", folder))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "finished" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_stages_2_and_3_start_from_a_fine_tuned_ranker_only_if_its_stage_is_named(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_finetune(alone, tiny_overrides())
    run_reward(alone, tiny_overrides("ranker=finetune/a"), "tuned")
    run_reward(alone, tiny_overrides("ranker=a"), "plain")
    run_ppo(alone, tiny_overrides("ranker=finetune/a", "reward=tuned", "train.epochs=1"), "tuned")
    for run, source in (("reward/tuned", "finetune"), ("reward/plain", "pointwise"), ("ppo/tuned", "finetune")):
        config = yaml.safe_load((logs / run / "config.yaml").read_text(encoding="utf-8"))
        assert config["ranker"] == str(logs / source / "a")
    assert rows(logs, "ppo", "tuned")[0]["validation/ndcg"] > 0.9
    with pytest.raises(UserError, match=r"ppo/tuned: is a run of stage ppo, wanted one of pointwise or finetune"):
        run_reward(alone, tiny_overrides("ranker=ppo/tuned"), "x")


def test_clips_that_selected_or_trained_an_earlier_run_are_known_of_a_later_one(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides("data.train=val_data.json", "data.validation=test_data.json")).logs
    folder = run_finetune(alone, tiny_overrides("train.learning_rate=0", "train.epochs=1"))
    known, finished = find_trained_on(folder, logs), read_finished(folder)
    assert {clip.partition("-")[0] for clip in known.selected_on} == {"test", "validation"}
    assert finished is not None
    assert finished["warnings"] == ["13 of the validation clips are trained on, such as validation-0"]
