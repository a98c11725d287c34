"""Runs are found after their logs have moved, and a folder with only weights is read as a run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import Model, save_model
from lr2ppo.runs.lookup import (
    PUBLISHED_DATA,
    PUBLISHED_PRESET,
    best_validation,
    explain_missing,
    find_run,
    find_source_run,
    read_data,
    read_finished,
    read_run,
    read_temperature,
    source_runs,
)
from lr2ppo.runs.stages import STAGES
from tests.conftest import REPOSITORY

SHAPE = ModelConfig(
    head="flatten", attention="published", width=8, heads=2, dropout=0.0, text_tokens=3, frames=6, tokens_per_frame=2
)


SOURCES_OF_PPO = [(key, usual) for key, (usual, *_) in STAGES["ppo"].sources.items()]


def make_run(logs: Path, stage: str, name: str = "a", **config: Any) -> Path:
    """Write a run's folder with a config and the description of its weights."""
    folder = logs / stage / name
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "config.json").write_text("{}", encoding="utf-8")
    tree = {"stage": stage, "preset": "mini", "logs": str(logs), **config}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def make_all(logs: Path, **config: Any) -> Path:
    """Write runs of all three stages; return that of stage 3, which started from the others."""
    for stage in ("pointwise", "reward"):
        make_run(logs, stage)
    return make_run(logs, "ppo", ranker=f"{logs}/pointwise/a", reward=f"{logs}/reward/a", **config)


def test_a_run_finds_those_it_started_from_by_absolute_and_by_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"ranker": Path("pointwise", "a"), "reward": Path("reward", "a")}
    run = make_all(tmp_path / "logs")
    assert source_runs(run) == {key: tmp_path / "logs" / place for key, place in wanted.items()}
    monkeypatch.chdir(tmp_path)
    relative = make_all(Path("others"))
    assert source_runs(relative) == {key: tmp_path / "others" / place for key, place in wanted.items()}


@pytest.mark.parametrize("old_logs_stay", [False, True])
def test_runs_that_moved_together_are_found_at_their_new_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_logs_stay: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for logs in (Path("relative"), tmp_path / "absolute"):
        make_all(logs)
        moved = tmp_path / "moved" / logs.name
        moved.parent.mkdir(exist_ok=True)
        logs.rename(moved)
        if old_logs_stay:
            # Different runs with the same names.
            make_all(logs)
        wanted = {"ranker": moved / "pointwise" / "a", "reward": moved / "reward" / "a"}
        assert source_runs(moved / "ppo" / "a") == wanted


def test_a_run_of_other_logs_is_not_mistaken_for_one_of_the_same_name(tmp_path: Path) -> None:
    elsewhere = make_run(tmp_path / "elsewhere", "pointwise")
    make_run(tmp_path / "logs", "pointwise")
    run = make_run(tmp_path / "logs", "reward", ranker=str(elsewhere))
    (elsewhere / "best" / "model.safetensors").write_text("weights", encoding="utf-8")
    fingerprint = hashlib.sha256(b"weights").hexdigest()
    (run / "inputs.json").write_text(json.dumps({"ranker": fingerprint}), encoding="utf-8")
    assert source_runs(run) == {"ranker": elsewhere}
    # A run of someone else could name any folder; that it knows the weights shows that it started from them.
    (elsewhere / "best" / "model.safetensors").unlink()
    assert source_runs(run) == {"ranker": None}
    (run / "inputs.json").unlink()
    assert source_runs(run) == {"ranker": None}
    assert explain_missing(run, "ranker").endswith("is in another folder, and it is not known which weights it had")


def test_runs_that_are_gone_damaged_or_not_named_are_no_sources(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ppo", ranker="gone/pointwise/a", reward="none")
    assert source_runs(run) == {"ranker": None}
    make_run(tmp_path, "pointwise")
    assert source_runs(run) == {"ranker": tmp_path / "pointwise" / "a"}
    (tmp_path / "pointwise" / "a" / "config.yaml").write_text("stage: [", encoding="utf-8")
    assert source_runs(run) == {"ranker": None}
    assert source_runs(make_run(tmp_path, "reward", ranker="newest")) == {}
    assert source_runs(make_run(tmp_path, "pointwise", "b")) == {}


def test_a_run_that_was_trained_again_is_no_source_of_those_that_started_from_it_before(tmp_path: Path) -> None:
    run = make_all(tmp_path / "logs")
    weights = {key: tmp_path / "logs" / stage / "a" / "best" / "model.safetensors" for key, stage in SOURCES_OF_PPO}
    for key, path in weights.items():
        path.write_text(key, encoding="utf-8")
    kept = {key: hashlib.sha256(key.encode()).hexdigest() for key in weights}
    (run / "inputs.json").write_text(json.dumps(kept), encoding="utf-8")
    assert list(source_runs(run).values()) == [tmp_path / "logs" / stage / "a" for _, stage in SOURCES_OF_PPO]
    weights["reward"].write_text("others", encoding="utf-8")
    assert source_runs(run) == {"ranker": tmp_path / "logs" / "pointwise" / "a", "reward": None}
    assert explain_missing(run, "reward") == f"{tmp_path}/logs/reward/a was trained again since and has other weights"
    # The same weights elsewhere are still those it started from.
    moved = tmp_path / "moved"
    (tmp_path / "logs").rename(moved)
    make_all(tmp_path / "logs")
    (moved / "reward" / "a" / "best" / "model.safetensors").write_text("reward", encoding="utf-8")
    assert source_runs(moved / "ppo" / "a")["reward"] == moved / "reward" / "a"


@pytest.mark.parametrize(
    ("place", "model", "stage"),
    [
        ("pointwise/a", RelevanceRanker, "pointwise"),
        ("ppo/a", RelevanceRanker, "ppo"),
        ("reward/a", PartialOrderModel, "reward"),
        ("kept/a", PartialOrderModel, "reward"),
        ("kept/a", RelevanceRanker, "pointwise"),
    ],
)
def test_only_weights_are_read_as_a_finished_run_on_lrmovienet(
    tmp_path: Path, place: str, model: type[Model], stage: str
) -> None:
    folder = tmp_path / place
    save_model(folder / "best", model(SHAPE))
    assert read_run(folder)["stage"] == stage
    assert read_run(folder)["preset"] == PUBLISHED_PRESET
    assert (read_data(folder).frames, str(read_data(folder).root)) == (3, "data/LRMovieNet")
    finished = read_finished(folder)
    assert finished is not None
    assert "converted_from" in finished
    assert (best_validation(folder), read_temperature(folder), source_runs(folder)) == ({}, 1.0, {})
    assert find_run(str(folder), STAGES, tmp_path) == folder
    assert find_source_run(str(folder), (stage,), "mini", tmp_path) == folder
    with pytest.raises(UserError, match=f"found no finished {stage} run of preset {PUBLISHED_PRESET}"):
        find_source_run("newest", (stage,), PUBLISHED_PRESET, tmp_path)


def test_only_weights_have_the_data_of_the_published_preset() -> None:
    for stage in ("pointwise", "ppo"):
        config = load_config(REPOSITORY / "configs" / PUBLISHED_PRESET / f"{stage}.yaml", stage)
        own_files = {"train": config.data.train}
        assert config.data == DataConfig.model_validate(PUBLISHED_DATA | own_files)


def test_weights_of_no_model_and_a_damaged_end_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "pointwise" / "a"
    (folder / "best").mkdir(parents=True)
    for content in ("{", "[]", "{}", json.dumps({"model": "Other", "shape": SHAPE.model_dump(mode="json")})):
        (folder / "best" / "config.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"best/config\.json: does not describe a model"):
            read_run(folder)
    run = make_run(tmp_path, "ppo")
    assert read_finished(run) is None
    for content in ("{", "[1]"):
        (run / "finished.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"ppo/a: finished\.json (is not JSON|holds no mapping)"):
            read_finished(run)
    (run / "config.yaml").write_text("stage: [ppo]", encoding="utf-8")
    with pytest.raises(UserError, match="has no stage"):
        read_run(run)


@pytest.mark.parametrize(
    ("reference", "command"),
    [
        ("a", "sh ppo.sh a"),
        ("ppo/a", "sh ppo.sh a"),
        ("pointwise/a", "sh pointwise.sh a"),
        ("my a", "sh ppo.sh 'my a'"),
    ],
)
def test_a_missing_run_is_made_with_a_command_that_works(reference: str, command: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no such run .* make it with: {command}$"):
        find_run(reference, STAGES, tmp_path)


def test_a_missing_source_run_is_made_with_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train one first: PRESET='my films' sh pointwise\.sh NAME$"):
        find_source_run("newest", ("pointwise",), "my films", tmp_path)
