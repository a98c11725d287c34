"""The scripts, end to end on a very small mini benchmark, as in the README."""

import itertools
import json
import re
import shutil
from contextlib import suppress

import numpy as np
import pytest

from lr2ppo.cli import main
from tests.conftest import REPOSITORY
from tests.helpers.workspace import Workspace

SIZES = ("--source=24", "--target=24", "--validation=6", "--test=8", "--pretraining=200")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """All steps of `scripts/mini.sh` on a few clips, with encoders pretrained long enough to be accepted."""
    made = Workspace.make(tmp_path_factory.mktemp("scripts"))
    made.ok("sh", "-c", f'"$PYTHON" -m lr2ppo mini data/tiny --seed 3 {" ".join(SIZES)}')
    pretrain = '"$PYTHON" -m lr2ppo pretrain --data data/tiny --out pretrained_models/tiny'
    # With 120 steps half of the seeds are refused; which ones depends on the versions of the packages.
    made.ok("sh", "-c", f"{pretrain} --steps 300 --batch 32")
    made.ok("sh", "scripts/mini.sh", "tiny", "3", "data/tiny", "train.epochs=1")
    return made


def test_every_stage_is_trained_and_evaluated(workspace: Workspace) -> None:
    for stage in ("pointwise", "finetune", "reward", "ppo"):
        folder = workspace.root / "logs" / stage / "tiny"
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]
        assert results["clips"] == 8
        assert results["ndcg"]["low"] <= results["ndcg"]["mean"] <= results["ndcg"]["high"]
        assert "perfect order" in (folder / "evaluation.txt").read_text(encoding="utf-8")


def test_a_case_holds_labels_grades_scores_and_the_order_that_the_scores_make(workspace: Workspace) -> None:
    cases = json.loads((workspace.root / "logs" / "ppo" / "tiny" / "cases.json").read_text(encoding="utf-8"))["test"]
    annotated = {clip["id"]: clip for clip in json.loads((workspace.root / "data/tiny/test_data.json").read_text())}
    for case in cases:
        tags = annotated[case["id"]]["tags"]
        assert case["labels"] == [tag["tag"] for tag in tags]
        assert case["grades"] == [tag["target"] for tag in tags]
        assert (np.diff(np.array(case["scores"])[case["order"]]) <= 0).all()


def test_the_table_shows_stages_between_chance_and_perfect_order_with_every_difference(workspace: Workspace) -> None:
    runs = ("pointwise/tiny", "ppo/tiny", "reward/tiny")
    printed = workspace.ok("sh", "ppo_eval.sh", "--table", *runs, "--csv", "table.csv", "split=test")
    table, differences, headline, written = printed.split("\n\n")[1:]
    names = [line.split("  ")[0] for line in table.splitlines() if line[:1].isalpha()]
    assert names == ["chance", *runs, "perfect order"]
    for first, second in itertools.combinations(runs, 2):
        assert f"{first} - {second} " in differences or f"{second} - {first} " in differences
    assert headline.startswith(("No difference between ", *(f"{run} orders best: " for run in runs)))
    assert written == "written: table.csv\n"
    lines = (workspace.root / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 7 * (3 + 3)


def test_runs_of_several_seeds_are_one_row(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)

    def table(*rows: str) -> str:
        """Print a table as ppo_eval.sh does, without a process for each; returns what a user sees."""
        with suppress(SystemExit):
            main(["evaluate", "--config", "configs/mini/evaluate.yaml", "--table", *rows])
        return "".join(capsys.readouterr())

    for stage in ("pointwise", "ppo"):
        shutil.copytree(workspace.root / "logs" / stage / "tiny", workspace.root / "logs" / stage / "tiny-2")
    rows = ("pointwise/tiny,pointwise/tiny-2", "ppo/tiny,ppo/tiny-2")
    assert "it is the same run" in table(*rows)
    for stage in ("pointwise", "ppo"):
        config = workspace.root / "logs" / stage / "tiny-2" / "config.yaml"
        config.write_text(re.sub("(?m)^seed: .*", "seed: 99", config.read_text(encoding="utf-8")), encoding="utf-8")
    printed = workspace.ok("sh", "ppo_eval.sh", "--table", *rows)
    assert "2 runs on 8 clips; 95 % t intervals over runs and clips" in printed
    assert "ppo/tiny* x 2" in printed
    assert "1 and 2 runs on 8 clips" in table("pointwise/tiny", rows[1])
    assert "named twice" in table("pointwise/tiny", "pointwise/tiny")
    # The other seed has other clips.
    for stage in ("pointwise", "ppo"):
        path = workspace.root / "logs" / stage / "tiny-2" / "cases.json"
        cases = json.loads(path.read_text(encoding="utf-8"))
        for case in cases["test"]:
            case["id"] = f"other {case['id']}"
        path.write_text(json.dumps(cases), encoding="utf-8")
    assert "16 clips of 2 runs; 95 % t intervals over runs" in table(*rows)
    assert "other clips than" in table("pointwise/tiny", rows[1])


def test_a_report_is_written_of_runs_by_name(workspace: Workspace) -> None:
    printed = workspace.ok("sh", "-c", '"$PYTHON" -m lr2ppo report ppo/tiny -o page.html')
    assert "written: page.html" in printed
    text = (workspace.root / "page.html").read_text(encoding="utf-8")
    assert all(name in text for name in ("pointwise/tiny", "reward/tiny", "ppo/tiny"))
    assert "data:image/jpeg" in text
    assert "found no such run" in workspace.refused("sh", "-c", '"$PYTHON" -m lr2ppo report gone')


def test_extraction_resumes_where_it_stopped(workspace: Workspace) -> None:
    extract = (
        '"$PYTHON" -m lr2ppo extract --data data/tiny --text pretrained_models/tiny/roberta '
        "--image pretrained_models/tiny/vit"
    )
    assert "wrote 0 clips, 62 were there already" in workspace.ok("sh", "-c", extract + " --frame-tokens patches")
    assert "holds features made with" in workspace.refused("sh", "-c", extract)


def test_an_evaluated_split_does_not_lose_the_other(workspace: Workspace) -> None:
    workspace.ok("sh", "ppo_eval.sh", "ppo/tiny", "split=val")
    results = json.loads((workspace.root / "logs" / "ppo" / "tiny" / "results.json").read_text(encoding="utf-8"))
    assert (results["val"]["clips"], results["test"]["clips"]) == (6, 8)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("sh", "pointwise.sh"), "usage: [PRESET=lrmovienet] [NPROC=N] sh pointwise.sh NAME"),
        (("sh", "ppo.sh", "seed=1"), "usage:"),
        (("sh", "pointwise.sh", "tiny", "data.root=data/tiny"), "a run of this name exists"),
        (("env", "PRESET=nine", "sh", "pointwise.sh", "x"), "configs/nine/pointwise.yaml: no such config file"),
        (("sh", "scripts/mini.sh"), "usage:"),
    ],
)
def test_a_mistake_gets_one_helpful_message(workspace: Workspace, command: tuple[str, ...], message: str) -> None:
    assert message in workspace.refused(*command)
    assert not (workspace.root / "logs" / "pointwise" / "x").exists()


@pytest.mark.parametrize(
    ("stage", "arguments", "message"),
    [
        ("pointwise", "name=x data.root=gone", "gone/clean_feat.h5: no such feature file; make it with"),
        ("pointwise", "name=x train.epochs=many", "train.epochs: found 'many'"),
        ("pointwise", "name=a/b", "name: found 'a/b', wanted only letters"),
        ("pointwise", "name=x train.epoch=3", "unknown key 'train.epoch'; did you mean train.epochs?"),
        ("reward", "name=x logs=nowhere", "train one first: PRESET=mini sh pointwise.sh NAME"),
        ("ppo", "name=x reward=gone data.root=data/tiny", "gone: found no such run under logs; there are: reward/tiny"),
        ("evaluate", "name=gone", "gone: found no such run under logs"),
        ("evaluate", "name=tiny split=train", "split: found 'train'"),
    ],
)
def test_a_mistake_is_reported_before_any_work(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(workspace.root)
    command = ["evaluate"] if stage == "evaluate" else ["train", stage]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--config", f"configs/mini/{stage}.yaml", *arguments.split()])
    errors = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in errors
    assert errors.count("error:") == 1
    assert not (workspace.root / "logs" / stage / "x").exists()


def test_print_config_shows_the_resolved_tree_and_starts_nothing(workspace: Workspace) -> None:
    printed = workspace.ok("sh", "pointwise.sh", "x", "--print-config", "train.epochs=3")
    assert "preset: mini" in printed
    assert "epochs: 3" in printed
    assert not (workspace.root / "logs" / "pointwise" / "x").exists()


def test_the_repository_scripts_are_plain_shell_with_a_usage_line() -> None:
    for script in REPOSITORY.glob("*.sh"):
        first, second = script.read_text(encoding="utf-8").splitlines()[:2]
        assert first == "#!/bin/sh"
        assert f"sh {script.name} " in second


def test_stage_2_fine_tunes_first_and_stage_3_starts_from_that(workspace: Workspace) -> None:
    given = ("ranker=tiny", "data.root=data/tiny", "train.epochs=1", "finetune:train.learning_rate=1e-4")
    logs = workspace.root / "logs"
    workspace.ok("sh", "reward_pair_dataloader.sh", "both", *given)
    before = (logs / "finetune" / "both" / "finished.json").read_bytes()
    shutil.rmtree(logs / "reward" / "both")
    printed = workspace.ok("sh", "reward_pair_dataloader.sh", "both", *given)
    assert "== finetune/both: finished already" in printed
    assert (logs / "finetune" / "both" / "finished.json").read_bytes() == before
    workspace.ok("sh", "ppo.sh", "both", "ranker=both", "reward=both", "data.root=data/tiny", "train.epochs=1")
    config = (logs / "ppo" / "both" / "config.yaml").read_text(encoding="utf-8")
    assert "ranker: logs/finetune/both\n" in config
    assert "reward: logs/reward/both\n" in config
    assert "ranker: logs/pointwise/tiny\n" in (logs / "reward" / "both" / "config.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 0.0001\n" in (logs / "finetune" / "both" / "config.yaml").read_text(encoding="utf-8")
    # From a given ranker there is nothing to train before.
    printed = workspace.ok("sh", "reward_pair_dataloader.sh", "alone", "ranker=finetune/both", "--print-config")
    assert "ranker: finetune/both\n" in printed
