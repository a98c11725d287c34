"""An evaluation is of the weights it was made with, and is not shown as one of other weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lr2ppo import LabelRanker
from lr2ppo.config.load import load_config
from lr2ppo.errors import UserError
from lr2ppo.files import write_json
from lr2ppo.inference.export import export
from lr2ppo.inference.trained import open_trained
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import save_model
from lr2ppo.report import write_report
from lr2ppo.report.load import find_rows
from lr2ppo.runs.listing import read_status
from lr2ppo.runs.lookup import weights_fingerprint
from lr2ppo.stages.evaluate import evaluate, show_table
from tests.conftest import REPOSITORY
from tests.helpers.untrained_world import SHAPE, make_untrained_world

Evaluate = Callable[..., None]
CONFIG = REPOSITORY / "configs" / "mini" / "evaluate.yaml"


@pytest.fixture
def logs(tmp_path: Path, tiny_world: Path) -> Path:
    """Untrained runs `pointwise/one`, `reward/one` and `ppo/one`."""
    make_untrained_world(tmp_path, tiny_world)
    return tmp_path / "logs"


@pytest.fixture
def evaluated(logs: Path) -> Evaluate:
    """Evaluates a run of the untrained world."""

    def run(name: str, *more: str) -> None:
        settings = [f"name={name}", f"logs={logs}", "device=cpu", "workers=0", "bootstrap_samples=20", *more]
        evaluate(load_config(CONFIG, "evaluate", settings))

    return run


def table(logs: Path, *runs: str, split: str = "test") -> None:
    show_table(runs, load_config(CONFIG, "evaluate", [f"logs={logs}", f"split={split}", "bootstrap_samples=20"]))


def train_on(folder: Path) -> None:
    """Replace a run's best weights, as a run that resumes does."""
    torch.manual_seed(1)
    save_model(folder / "best", RelevanceRanker(SHAPE))


def test_an_evaluation_of_earlier_weights_is_not_shown_as_that_of_the_run(
    logs: Path, evaluated: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = logs / "ppo" / "one"
    for split in ("test", "val"):
        evaluated("ppo/one", f"split={split}")
    table(logs, "ppo/one")
    train_on(run)
    # Another split that is evaluated since does not make this one current.
    evaluated("ppo/one", "split=val")
    with pytest.raises(UserError, match=r"evaluated on test with other weights .* sh ppo_eval\.sh ppo/one split=test"):
        table(logs, "pointwise/one", "ppo/one")
    table(logs, "ppo/one", split="val")
    found = read_status(run)
    assert found is not None
    assert (found.state, found.evaluated, found.outdated) == ("evaluated", ("val",), ("test",))
    page = write_report(find_rows(["ppo/one"], logs), "test", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ppo/one was evaluated on test with other weights than it has now" in page
    export(open_trained("ppo/one", logs), tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "The run was evaluated on test with other weights than it has now: `sh ppo_eval.sh" in card
    assert card.count("| metric | mean |") == 1

    evaluated("ppo/one")
    capsys.readouterr()
    table(logs, "ppo/one")
    ndcg = json.loads((run / "results.json").read_text(encoding="utf-8"))["test"]["ndcg"]["mean"]
    assert f"{ndcg:.3f}" in capsys.readouterr().out
    found = read_status(run)
    assert found is not None
    assert (found.evaluated, found.outdated) == (("test", "val"), ())


def test_evaluations_of_earlier_versions_and_of_runs_without_weights_stay_readable(
    logs: Path, evaluated: Evaluate
) -> None:
    table(logs, "ppo/one")
    evaluated("ppo/one")
    (logs / "ppo" / "one" / "best" / "model.safetensors").unlink()
    table(logs, "ppo/one")


def test_an_evaluation_says_if_the_run_has_not_finished(
    logs: Path, evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated("ppo/one")
    assert "not finished" not in capsys.readouterr().out
    (logs / "ppo" / "one" / "finished.json").unlink()
    evaluated("ppo/one")
    assert "the run has not finished: these are its best weights so far" in capsys.readouterr().out


def test_a_reward_model_and_a_ranker_trained_again_are_not_used_as_those_a_run_started_from(
    logs: Path, tmp_path: Path
) -> None:
    run, sources = logs / "ppo" / "one", {"ranker": logs / "pointwise" / "one", "reward": logs / "reward" / "one"}
    kept = {key: weights_fingerprint(source) for key, source in sources.items()}
    write_json(run / "inputs.json", kept)
    trained = open_trained("ppo/one", logs)
    assert (trained.reward, trained.before is None) == (sources["reward"] / "best", False)
    assert len(find_rows(["ppo/one"], logs)) == 3
    save_model(sources["ranker"] / "best", RelevanceRanker(SHAPE))
    save_model(sources["reward"] / "best", PartialOrderModel(SHAPE))
    trained = open_trained("ppo/one", logs)
    assert (trained.reward, trained.before) == (None, None)
    with pytest.raises(UserError, match=r"its reward model .*reward/one was trained again since"):
        LabelRanker.load("ppo/one", logs=logs, device="cpu").compare(None, "a", "b")
    assert find_rows(["ppo/one"], logs) == [[run]]
    export(trained, tmp_path / "exported")
    assert not (tmp_path / "exported" / "reward").exists()
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    assert "- ranker: " in card
    assert card.count("was trained again since") == 2
