"""An evaluation is shown only as what it is: of its weights, its clips, and runs that make one row."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lr2ppo import LabelRanker
from lr2ppo.config.load import load_config
from lr2ppo.data.annotations import graded
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.relevance import describe_reliability, fit_calibration
from lr2ppo.evaluation.results import cases_clips
from lr2ppo.files import file_fingerprint, read_json, write_json
from lr2ppo.inference.export import export
from lr2ppo.inference.trained import open_trained
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import save_model
from lr2ppo.report import write_report
from lr2ppo.report.load import find_rows
from lr2ppo.runs.listing import read_status
from lr2ppo.runs.lookup import read_calibration, weights_fingerprint
from lr2ppo.runs.records import Calibration
from lr2ppo.runs.stages import STAGES
from lr2ppo.stages.evaluate import evaluate, is_evaluated, run_data, show_table
from tests.conftest import REPOSITORY
from tests.helpers.parallel_training import TRAIN
from tests.helpers.trained_world import TrainedWorld
from tests.helpers.untrained_world import CALIBRATION, SHAPE, make_untrained_world

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("linked", ["best", "best/model.safetensors"])
def test_a_run_whose_weights_are_a_link_to_those_of_another_is_not_exported(
    logs: Path, tmp_path: Path, linked: str
) -> None:
    private = Path(shutil.copytree(logs / "pointwise" / "one", tmp_path / "private" / "pointwise" / "secret"))
    path = logs / "pointwise" / "one" / linked
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(private / linked)
    with pytest.raises(UserError, match=r"pointwise/one/best: has links to other folders"):
        export(open_trained("pointwise/one", logs), tmp_path / "exported")
    # Nor is it taken for the run that another started from.
    export(open_trained("ppo/one", logs), tmp_path / "exported")
    assert not (tmp_path / "exported" / "before").exists()


@pytest.mark.parametrize("changed", ["bootstrap_samples=21", "precision=fp32", "seed=8", "split=val"])
def test_an_evaluation_is_not_repeated_unless_its_settings_change(
    changed: str, logs: Path, evaluated: Evaluate, alone: Processes
) -> None:
    evaluated("ppo/one")
    data = run_data(logs / "ppo" / "one", None)

    def is_done(*settings: str) -> bool:
        config = load_config(CONFIG, "evaluate", ["bootstrap_samples=20", *settings])
        return is_evaluated(logs / "ppo" / "one", config, data, alone)

    assert is_done()
    assert not is_done(changed)


def test_evaluations_of_earlier_versions_and_of_runs_without_weights_stay_readable(
    logs: Path, evaluated: Evaluate
) -> None:
    table(logs, "ppo/one")
    evaluated("ppo/one")
    (logs / "ppo" / "one" / "best" / "model.safetensors").unlink()
    table(logs, "ppo/one")


@pytest.mark.parametrize("run", ["pointwise/flatten", "ppo/one"])
def test_probabilities_are_fitted_on_the_validation_clips_with_the_best_weights(
    trained_world: TrainedWorld, run: str, tmp_path: Path
) -> None:
    logs = shutil.copytree(trained_world.logs, tmp_path / "logs")
    settings = [f"name={run}", f"logs={logs}", "device=cpu", "workers=0", "bootstrap_samples=20", "split=val"]
    evaluate(load_config(CONFIG, "evaluate", settings))
    clips, scores = cases_clips(read_json(logs / run / "cases.json")["val"])
    wanted, found = fit_calibration(scores, [graded(clip) for clip in clips]), read_calibration(logs / run)
    assert (wanted is None) == (found is None)
    if wanted is not None and found is not None:
        assert found.model_dump() == pytest.approx(wanted.model_dump(), rel=1e-3, abs=1e-6)
    assert read_json(logs / "reward" / "one" / "finished.json")["calibration"] is None


def test_an_evaluation_tells_how_reliable_the_probabilities_are(
    logs: Path, evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated("ppo/one")
    clips, scores = cases_clips(read_json(logs / "ppo" / "one" / "cases.json")["test"])
    found = read_json(logs / "ppo" / "one" / "results.json")["test"]["reliability"]
    wanted = describe_reliability(Calibration.model_validate(CALIBRATION), scores, [graded(clip) for clip in clips])
    assert found == wanted
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("probabilities")]
    assert f"calibration error {found['calibration_error']:.3f}, Brier score {found['brier']:.3f} (" in line
    export(open_trained("ppo/one", logs), logs.parent / "out")
    assert line[1:] in (logs.parent / "out" / "README.md").read_text(encoding="utf-8")
    finished = logs / "ppo" / "one" / "finished.json"
    write_json(finished, read_json(finished) | {"calibration": None})
    for run in ("ppo/one", "reward/one"):
        evaluated(run)
        assert "probabilities" not in capsys.readouterr().out
        assert "reliability" not in read_json(logs / run / "results.json")["test"]


@pytest.mark.parametrize(
    ("key", "value"), [("brier", 2.0), ("calibration_error", None), ("bins", []), ("bins", [{"predicted": 0.5}])]
)
def test_damaged_figures_of_reliability_are_refused(logs: Path, key: str, value: object) -> None:
    path = logs / "ppo" / "one" / "results.json"
    results = read_json(path)
    results["test"]["reliability"][key] = value
    write_json(path, results)
    with pytest.raises(UserError, match=rf"results\.json: it is damaged \(reliability\.{key}.*evaluate the run again"):
        write_report(find_rows(["ppo/one"], logs), "test", logs / "report.html")


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


@pytest.fixture
def data(tiny_world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world to change."""
    return shutil.copytree(tiny_world, tmp_path / "data")


def grade_all_alike(path: Path) -> None:
    clips = read_json(path)
    write_json(path, [clip | {"tags": [tag | {"target": 0} for tag in clip["tags"]]} for clip in clips])


@pytest.mark.parametrize("stage", STAGES)
def test_a_validation_that_selects_no_weights_is_refused_before_the_first_step(
    stage: str, logs: Path, data: Path, alone: Processes
) -> None:
    grade_all_alike(data / "val_data.json")
    settings = [f"logs={logs}", f"data.root={data}", "name=new", "data.frames=3", "device=cpu"]
    settings += [f"{key}=one" for key in STAGES[stage].sources]
    settings += [] if "model" not in STAGES[stage].config.model_fields else ["model.width=16", "model.heads=2"]
    config = load_config(CONFIG.with_name(f"{stage}.yaml"), stage, settings)
    with pytest.raises(UserError, match=r"val_data\.json: found no clip with labels of different grades"):
        TRAIN[stage](config, alone, False)
    assert not (logs / stage / "new").exists()


def test_a_reward_model_is_evaluated_on_clips_without_pairs_of_different_grades(
    logs: Path, data: Path, evaluated: Evaluate
) -> None:
    grade_all_alike(data / "test_data.json")
    evaluated("reward/one", f"root={data}")
    assert "judgement" not in read_json(logs / "reward" / "one" / "results.json")["test"]
    evaluated("ppo/one", f"root={data}")
    table(logs, "reward/one", "ppo/one")


def test_an_evaluation_on_clips_that_were_trained_on_says_so_wherever_it_is_shown(
    logs: Path, data: Path, evaluated: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "warning: 32 of the 32 clips are trained on, such as source-0"
    train = data / "first_stage_data.json"
    write_json(logs / "pointwise" / "one" / "inputs.json", {"train": file_fingerprint(train)})
    evaluated("ppo/one", f"root={data}")
    assert "trained on" not in capsys.readouterr().out
    shutil.copy(train, data / "test_data.json")
    # By the run itself, and by the one that it started from.
    for run in ("pointwise/one", "ppo/one"):
        evaluated(run, f"root={data}")
        assert warning in capsys.readouterr().out
        page = (logs / run / "report.html").read_text(encoding="utf-8")
        assert f"{run}: {warning}." in page
    table(logs, "ppo/one")
    assert f"ppo/one: {warning}" in capsys.readouterr().out
    export(open_trained("ppo/one", logs), tmp_path / "exported")
    assert f"W{warning[1:]}." in (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")


def test_a_table_says_what_its_runs_should_not_be_read_without(
    logs: Path, data: Path, evaluated: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(data / "val_data.json", data / "test_data.json")
    chosen_on = file_fingerprint(data / "val_data.json")
    other = shutil.copytree(logs / "pointwise" / "one", logs / "pointwise" / "two")
    for run, train in (("one", "a"), ("two", "b")):
        write_json(logs / "pointwise" / run / "inputs.json", {"train": train, "validation": chosen_on})
        evaluated(f"pointwise/{run}", f"root={data}")
    results = read_json(other / "results.json")
    results["test"]["left_out"] = ["clip-7", "clip-9"]
    write_json(other / "results.json", results)
    finished = read_json(other / "finished.json") | {"warnings": ["3 of the validation clips are trained on"]}
    write_json(other / "finished.json", finished)
    write_json(other / "config.yaml", yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8")) | {"seed": 8})
    capsys.readouterr()
    table(logs, "pointwise/one,pointwise/two")
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("warning: its best step was chosen on 13 of the 13 clips") == 1
    assert "pointwise/two: warning: 2 clips were left out for faults, such as clip-7" in printed
    assert "pointwise/two: warning: 3 of the validation clips are trained on" in printed
    assert "note: its runs differ in the content of train" in printed


@pytest.mark.parametrize("run", ["pointwise/one", "reward/one", "ppo/one"])
def test_an_evaluation_tells_what_the_weights_of_the_last_step_reach(
    trained_world: TrainedWorld, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = shutil.copytree(trained_world.logs, tmp_path / "logs")
    folder = logs / run
    last = read_json(folder / "results.json")["test"]["last"]
    shutil.rmtree(folder / "best")
    shutil.copytree(folder / "checkpoints" / "last", folder / "best")
    settings = [f"name={run}", f"logs={logs}", "device=cpu", "workers=0", "bootstrap_samples=20"]
    evaluate(load_config(CONFIG, "evaluate", settings))
    found = read_json(folder / "results.json")["test"]
    assert last == pytest.approx({name: found[name]["mean"] for name in last})
    assert set(last) > {"ndcg", "ndcg@1", "pair_accuracy"}
    assert f"by the weights of the last step: NDCG@1 {last['ndcg@1']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("without_order", [1, None])
def test_clips_whose_labels_have_one_grade_are_evaluated_and_have_no_pair_accuracy(
    trained_world: TrainedWorld, without_order: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, data = (shutil.copytree(trained_world.root / name, tmp_path / name) for name in ("logs", "data"))
    clips = read_json(data / "test_data.json")
    for clip in clips[:without_order]:
        for tag in clip["tags"]:
            tag["target"] = 0
    write_json(data / "test_data.json", clips)
    settings = ["name=ppo/one", f"logs={logs}", f"root={data}", "device=cpu", "workers=0", "bootstrap_samples=20"]
    for _ in range(2):
        evaluate(load_config(CONFIG, "evaluate", settings))
        found = read_json(logs / "ppo" / "one" / "results.json")["test"]
        assert found["last"]["ndcg"] > 0
        assert ("pair_accuracy" in found["last"]) == (without_order is not None)
    printed = capsys.readouterr().out
    assert "nan" not in printed[printed.index("by the weights of the last step") :].partition("written:")[0]
    table(logs, "ppo/one")


def test_a_run_knows_its_clips_when_its_training_file_and_the_run_it_started_from_are_gone(
    logs: Path, data: Path, evaluated: Evaluate, alone: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, more in (("pointwise", []), ("reward", ["ranker=new"])):
        settings = [f"logs={logs}", f"data.root={data}", "name=new", "data.frames=3", "device=cpu", "data.workers=0"]
        settings += ["train.epochs=1", "model.width=16", "model.heads=2", *more]
        TRAIN[stage](load_config(CONFIG.with_name(f"{stage}.yaml"), stage, settings), alone, False)
    train = data / "first_stage_data.json"
    shutil.copy(train, data / "test_data.json")
    # As another conversion of a table splits its clips.
    write_json(train, read_json(train)[:3])
    (logs / "pointwise" / "new").rename(logs / "pointwise" / "renamed")
    for run in ("pointwise/renamed", "reward/new"):
        capsys.readouterr()
        evaluated(run)
        printed = capsys.readouterr().out
        assert "warning: 32 of the 32 clips are trained on, such as source-0\n" in printed
        assert "not known" not in printed
    (logs / "reward" / "new" / "trained_on.json").write_text('{"clips": [1], "unknown": []}', encoding="utf-8")
    with pytest.raises(UserError, match=r"reward/new: trained_on\.json is damaged \(clips\.0: found 1\)"):
        evaluated("reward/new")


def test_an_evaluation_says_of_which_runs_the_clips_are_not_known(
    logs: Path, data: Path, evaluated: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # As runs of earlier versions, which kept only the fingerprints.
    for stage in STAGES:
        run = logs / stage / "one"
        (run / "trained_on.json").unlink()
        train = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["train"]
        write_json(run / "inputs.json", {"train": file_fingerprint(data / train)})
    evaluated("ppo/one", f"root={data}")
    assert "trained on" not in capsys.readouterr().out
    shutil.rmtree(logs / "pointwise" / "one")
    evaluated("ppo/one", f"root={data}")
    note = (
        "note: the training clips of pointwise/one are not known, so it cannot be told whether any of these are "
        "among them"
    )
    assert note in capsys.readouterr().out
    assert f"ppo/one: {note}." in (logs / "ppo" / "one" / "report.html").read_text(encoding="utf-8")
    table(logs, "ppo/one")
    assert f"ppo/one: {note}" in " ".join(capsys.readouterr().out.split())
    (logs / "reward" / "one" / "inputs.json").unlink()
    evaluated("ppo/one", f"root={data}")
    assert "the training clips of pointwise/one, reward/one are not known" in capsys.readouterr().out


def test_a_row_is_of_different_runs_of_one_stage_and_says_which_settings_differ(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"ppo/one: is a run of stage ppo, .*pointwise/one one of pointwise"):
        table(logs, "pointwise/one,ppo/one")
    two = shutil.copytree(logs / "ppo" / "one", logs / "ppo" / "two")
    with pytest.raises(UserError, match=r"ppo/two: has the weights and the seed of .*ppo/one: it is the same run"):
        table(logs, "ppo/one,ppo/two")
    config = yaml.safe_load((two / "config.yaml").read_text(encoding="utf-8"))
    own = {"name": "two", "seed": 99, "ranker": "logs/pointwise/two", "reward": "logs/reward/two", "logs": "elsewhere"}
    (two / "config.yaml").write_text(yaml.safe_dump(config | own), encoding="utf-8")
    table(logs, "ppo/one,ppo/two")
    assert "differ in" not in capsys.readouterr().out
    config["train"]["epochs"], config["policy"]["kl_weight"] = 77, 0.7
    (two / "config.yaml").write_text(yaml.safe_dump(config | own), encoding="utf-8")
    table(logs, "ppo/one,ppo/two")
    printed = capsys.readouterr().out
    assert "note: its runs differ in train.epochs, policy.kl_weight" in printed or (
        "note: its runs differ in policy.kl_weight, train.epochs" in printed
    )
