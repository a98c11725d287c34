"""Exported folders: complete for ranking, the same scores, written all or nothing."""

import ast
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lr2ppo import LabelRanker
from lr2ppo.cli import main
from lr2ppo.errors import UserError
from lr2ppo.inference import export, onnx
from lr2ppo.inference.onnx import INPUTS, draw_inputs, export_onnx
from lr2ppo.inference.trained import open_trained
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_kind
from tests.helpers.trained_world import TrainedWorld
from tests.helpers.untrained_world import CALIBRATION


@pytest.fixture(scope="module")
def exported(trained_world: TrainedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported stage 3 run, moved to another folder."""
    root = tmp_path_factory.mktemp("exported")
    main(["export", "ppo/one", str(root / "made" / "out"), "--logs", str(trained_world.logs)])
    return Path(shutil.move(root / "made" / "out", root / "moved"))


def test_an_exported_folder_ranks_by_its_reward_model_as_the_run_does(
    trained_world: TrainedWorld, exported: Path
) -> None:
    queries = trained_world.queries()[:3]
    wanted = LabelRanker.load("ppo/one", logs=trained_world.logs, by="reward", device="cpu").rank_batch(queries)
    assert LabelRanker.load(exported, by="reward", device="cpu").rank_batch(queries) == wanted


def test_an_exported_folder_ranks_as_the_run_does(
    trained_world: TrainedWorld, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LabelRanker.load("ppo/one", logs=trained_world.logs, device="cpu")
    monkeypatch.chdir(tmp_path)
    found = LabelRanker.load(exported, device="cpu")
    assert (found.name, found.has_preferences) == ("ppo/one", True)
    queries = trained_world.queries()
    assert found.rank_batch(queries) == run.rank_batch(queries)
    query = queries[1]
    wanted = run.preferences(query.frames, query.labels, query.description)
    np.testing.assert_array_equal(found.preferences(query.frames, query.labels, query.description), wanted)
    assert found.before is not None
    assert run.before is not None
    assert (found.before.name, found.before.has_preferences) == ("pointwise/one", False)
    assert found.before.rank_batch(queries) == run.before.rank_batch(queries)


def test_an_exported_folder_keeps_the_probabilities_and_its_card_says_how_they_are_computed(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    logs = trained_world.calibrated(tmp_path / "logs", CALIBRATION)
    run = LabelRanker.load("ppo/one", logs=logs, device="cpu")
    export.export(open_trained("ppo/one", logs), tmp_path / "out")
    found = LabelRanker.load(tmp_path / "out", device="cpu")
    queries = trained_world.queries()
    assert None not in {label.probability for clip in found.rank_batch(queries) for label in clip}
    assert found.rank_batch(queries) == run.rank_batch(queries)
    assert found.before is not None
    assert run.before is not None
    assert found.before.rank_batch(queries) == run.before.rank_batch(queries)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    ((formula, standardized),) = re.findall(r"`(sigmoid\(.*)` with `z = (.*)`, fitted on 24 labels of 4", card)
    sigmoid = "lambda x: 1 / (1 + math.exp(-x))"
    for label in found.rank(queries[0].frames, queries[0].labels, queries[0].description):
        names = {"math": math, "log": math.log, "score": label.score}
        names["sigmoid"] = eval(sigmoid, names)  # noqa: S307 (the card's formula is Python)
        names["z"] = eval(standardized, names)  # noqa: S307
        assert eval(formula, names) == pytest.approx(label.probability, abs=1e-3)  # noqa: S307


def test_folders_of_earlier_versions_have_no_probabilities_and_damaged_ones_are_refused(
    trained_world: TrainedWorld, exported: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "out"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["use"]["calibration"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (ranked,) = LabelRanker.load(folder, device="cpu").rank_batch(trained_world.queries()[:1])
    assert {label.probability for label in ranked} == {None}
    config["use"]["calibration"] = CALIBRATION | {"slope_below": "steep"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: is not from an exported model .*\ncalibration.slope_below"):
        LabelRanker.load(folder, device="cpu")


def test_an_exported_folder_of_the_name_of_a_run_is_not_taken_for_it_nor_the_run_for_the_folder(
    trained_world: TrainedWorld,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path(shutil.copytree(exported, tmp_path / "pointwise" / "one"))
    message = (
        rf"^pointwise/one: is an exported folder here, and the name of the run .*; give .* {re.escape(str(here))},"
    )
    with pytest.raises(UserError, match=message):
        LabelRanker.load("pointwise/one", logs=trained_world.logs, device="cpu")
    command = ["rank", "pointwise/one", "--logs", str(trained_world.logs), "--annotations", "x", "--out", "y"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert (ended.value.code, "pointwise/one: is an exported folder here" in capsys.readouterr().err) == (2, True)
    assert LabelRanker.load(here, logs=trained_world.logs, device="cpu").name == "ppo/one"
    run = trained_world.logs / "pointwise" / "one"
    assert LabelRanker.load(run, logs=trained_world.logs, device="cpu").name == "pointwise/one"


@pytest.mark.parametrize("run", ["reward/one", "pointwise/flatten"])
def test_runs_of_other_stages_are_exported_too(trained_world: TrainedWorld, tmp_path: Path, run: str) -> None:
    export.export(open_trained(run, trained_world.logs), tmp_path / "out")
    found = LabelRanker.load(tmp_path / "out", device="cpu")
    for case, scores in zip(trained_world.cases(run), found.score_batch(trained_world.queries()), strict=True):
        np.testing.assert_allclose(scores, case["scores"], atol=1e-5)
    assert found.has_preferences == (run == "reward/one")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_model_card_shows_metrics_data_encoders_and_how_to_load(
    trained_world: TrainedWorld, exported: Path
) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    results = json.loads((trained_world.logs / "ppo" / "one" / "results.json").read_text(encoding="utf-8"))["test"]
    at_5 = results["ndcg@5"]
    shown = (
        f"| NDCG@5 | {at_5['mean']:.3f} | {at_5['low']:.3f} to {at_5['high']:.3f} | {results['chance']['ndcg@5']:.3f} |"
    )
    assert shown in card
    assert re.search(
        r"^(No difference between|\w+/one orders best:) .* say nothing about other seeds\.$", card, re.MULTILINE
    )
    assert f"Folder: `{trained_world.data}`" in card
    encoders = json.loads((exported / "config.json").read_text(encoding="utf-8"))["use"]["encoders"]
    assert f"`{encoders['image_encoder']}` at `{trained_world.encoders / 'vit'}`" in card
    assert "LabelRanker.load(" in card


def test_how_to_use_an_export_can_be_pasted_whatever_it_is_called(
    trained_world: TrainedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'my "best" model, it\'s $HOME'
    main(["export", "pointwise/one", str(out), "--logs", str(trained_world.logs)])
    (printed,) = re.findall(r"rank with: (.*) \.\.\.$", capsys.readouterr().out, re.MULTILINE)
    assert shlex.split(printed) == ["lr2ppo", "rank", str(out)]
    card = (out / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^lr2ppo rank .*$", card, re.MULTILINE)
    assert shlex.split(command)[:3] == ["lr2ppo", "rank", str(out)]
    (argument,) = re.findall(r"LabelRanker\.load\((.*)\)  #", card)
    assert ast.literal_eval(argument) == str(out)


def test_the_card_of_a_run_of_someone_else_holds_none_of_its_markdown_or_html(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_world.logs / "pointwise" / "one", tmp_path / "point`wise" / "<b>run_1*")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config |= {"seed": "7\n\n# Install\n\n<script>", "preset": "a`b``\n## c"}
    config["data"] |= {"train": "", "validation": "`<b>`"}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    results["test"] |= {"annotations": "x`\n\n<img src=y>", "trained_on": ["<i>\n# clip"]}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")
    main(["export", str(run), str(tmp_path / "out"), "--logs", str(tmp_path)])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [r"# point\`wise/\<b\>run\_1\*", "## Metrics", "## Data", "## Encoders", "## Use"]
    assert "``` a`b`` ## c ```, seed `7 # Install <script>`" in card
    assert "clips of `` x` <img src=y> ``, the test split" in card
    assert "Training: `(empty)`; validation: `` `<b>` ``; test: `" in card
    assert r"such as \<i\> \# clip." in card


def test_an_existing_folder_is_not_changed(
    trained_world: TrainedWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["export", "pointwise/one", str(tmp_path / "out"), "--logs", str(trained_world.logs)])
    assert "out: already exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_an_export_that_fails_leaves_nothing(
    trained_world: TrainedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(export, "write_card", fail)
    with pytest.raises(UserError, match="the disk is full"):
        export.export(open_trained("pointwise/one", trained_world.logs), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_an_export_is_refused(trained_world: TrainedWorld) -> None:
    with pytest.raises(UserError, match=r"best/config\.json: is not from an exported model"):
        LabelRanker.load(trained_world.logs / "ppo" / "one" / "best")


@pytest.mark.slow
@pytest.mark.parametrize(("run", "sizes"), [("ppo/one", (4, 6, 9, 32)), ("pointwise/flatten", (2, 5, 0, 0))])
def test_the_onnx_graph_scores_batches_of_other_sizes_as_torch_does(
    trained_world: TrainedWorld, tmp_path: Path, run: str, sizes: tuple[int, int, int, int]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    trained = open_trained(run, trained_world.logs)
    report = export_onnx(trained, tmp_path / "ranker.onnx")
    assert report.difference < 1e-4
    assert ("padded to 38 tokens, frames are 112" in str(report)) == (run == "pointwise/flatten")
    ranker = load_kind(trained.weights, RelevanceRanker)
    text, text_mask, frames, frame_mask = inputs = draw_inputs(ranker, sizes)
    session = onnxruntime.InferenceSession(str(tmp_path / "ranker.onnx"))
    (found,) = session.run(None, {name: each.numpy() for name, each in zip(INPUTS, inputs, strict=True)})
    with torch.no_grad():
        wanted = ranker(text, frames, text_mask=text_mask, frame_mask=frame_mask)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_packages_that_are_missing_or_too_old_for_onnx_are_named_before_any_work(
    trained_world: TrainedWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", {"torch": "1000.0.1", "numpy": "1.26", "nowhere": "2.3"})
    wanted = f"torch 1000.0.1 or newer, found {torch.__version__}; nowhere 2.3 or newer, found none: pip install"
    with pytest.raises(UserError, match=re.escape(wanted)):
        export.export(open_trained("pointwise/one", trained_world.logs), tmp_path / "made" / "out", with_onnx=True)
    assert not list(tmp_path.iterdir())


def test_a_reward_model_has_no_onnx_graph(trained_world: TrainedWorld, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a reward model, which has no ONNX export"):
        export.export(open_trained("reward/one", trained_world.logs), tmp_path / "out", with_onnx=True)
    assert not list(tmp_path.iterdir())
