"""A comparison trains what is missing once, chooses on validation, goes on where it stopped, and writes its table."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from lr2ppo.cli import main
from lr2ppo.commands.compare import read_set
from lr2ppo.config.load import load_config
from lr2ppo.data.mini import SIZES, write_mini
from lr2ppo.distributed.commands import Command
from lr2ppo.stages import compare
from lr2ppo.stages.comparison_plan import make_plan
from tests.conftest import REPOSITORY
from tests.helpers.quick import answered_at_once

RATE = "finetune:train.learning_rate"
# The first two words of its command.
EVALUATE = f"evaluate --config={REPOSITORY / 'configs' / 'mini' / 'evaluate.yaml'}"
SET: dict[str, Any] = {
    "stage": "compare",
    "preset": str(REPOSITORY / "configs" / "mini"),
    "split": "test",
    "seeds": [1, 2],
    "against": "stage 1",
    "settings": ["data.frames=3", "train.epochs=1", "pointwise:train.max_labels=6", "device=cpu"],
    "rows": {
        "stage 1": {"stages": ["pointwise"]},
        "fine-tuned": {"stages": ["pointwise", "finetune"], "tune": {RATE: [0.0, 0.01]}},
        "two": {"stages": ["pointwise"], "members": 2},
    },
}


@pytest.fixture
def file(tiny_world: Path, tmp_path: Path) -> Path:
    """The file of a set on a copy of the tiny world."""
    shutil.copytree(tiny_world, tmp_path / "data")
    return write_set(tmp_path)


def write_set(folder: Path, **changes: Any) -> Path:
    data = {"tiny": [f"data.root={folder / 'data'}"]}
    path = folder / "small.yaml"
    tree = SET | {"data": data, "logs": str(folder / "logs")} | changes
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


class Commands(list[str]):
    """The commands that a comparison starts, which run in this process instead; after `last` of them it is stopped."""

    last = 1000

    def __init__(self) -> None:
        # What happens before the next command of a kind.
        self.before_next: dict[str, Callable[[], None]] = {}

    def run_all(self, commands: Sequence[Command], places: Any, begin: Callable[[Command, int], None]) -> None:
        for ended, command in enumerate(commands):
            if len(self) == self.last:
                raise SystemExit(130)
            begin(command, ended)
            words = command.arguments
            if change := self.before_next.pop(" ".join(words[:2]), None):
                change()
            self.append(f"{words[0]} {words[1]}" if words[0] == "train" else "evaluate")
            main(words)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    started = Commands()
    monkeypatch.setattr(compare, "run_commands", started.run_all)
    return started


def table_of(folder: Path) -> dict[str, list[str]]:
    """The cells of each line of the Markdown table, by the row's name."""
    lines = (folder / "logs" / "small" / "table.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
def test_a_set_trains_each_run_once_and_shows_the_choice_of_validation(
    file: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", str(file)])
    # Of each seed: stage 1, which all rows share, the second member, and fine-tuning at two rates.
    assert commands.count("train pointwise") == 2 * 2
    assert commands.count("train finetune") == 2 * 2
    assert commands.count("evaluate") == 2 * 3
    printed = capsys.readouterr().out
    assert "8 runs in " in printed
    # A rate of 0 leaves the order of the source, which is that of the target turned round.
    assert "learning_rate=0.01 (of 2)" in printed
    assert "Above stage 1: fine-tuned (+0." in printed
    rows = table_of(file.parent)
    assert list(rows) == ["", "---", "chance", "stage 1", "fine-tuned", "two", "perfect order"]
    weights = {name: cells[-1] for name, cells in rows.items()}
    assert int(weights["two"].removesuffix("k")) == pytest.approx(2 * int(weights["stage 1"].removesuffix("k")), abs=1)
    for ending in ("txt", "csv", "tex"):
        assert "fine-tuned" in (file.parent / "logs" / "small" / f"table.{ending}").read_text(encoding="utf-8")
    page = (file.parent / "logs" / "small" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in rows if name != "---")

    # Nothing is missing now; another set finds the runs again and trains what it adds.
    commands.clear()
    main(["compare", str(file)])
    assert commands == []
    main(["compare", str(file), "seeds=[2,3]"])
    assert sorted(set(commands)) == ["evaluate", "train finetune", "train pointwise"]
    assert (commands.count("train pointwise"), commands.count("train finetune")) == (2, 2)


@pytest.mark.slow
def test_a_stopped_set_goes_on_and_a_changed_file_is_another_run(
    file: Path, commands: Commands, tmp_path: Path
) -> None:
    write_set(tmp_path, seeds=[1], rows={name: row for name, row in SET["rows"].items() if name != "two"})
    commands.last = 2
    with pytest.raises(SystemExit):
        main(["compare", str(file)])
    commands.last = 1000
    assert commands == ["train pointwise", "train finetune"]
    main(["compare", str(file)])
    assert commands == ["train pointwise", "train finetune", "train finetune", "evaluate", "evaluate"]

    path = tmp_path / "data" / "first_second_data_pair" / "first_second_data_pair_10pct.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[1:]), encoding="utf-8")
    commands.clear()
    main(["compare", str(file)])
    assert commands == ["train finetune", "train finetune", "evaluate"]


def turn_pairs_round(data: Path) -> None:
    path = data / "first_second_data_pair" / "first_second_data_pair_10pct.json"
    clips = json.loads(path.read_text(encoding="utf-8"))
    turned = [clip | {"index": [[worse, better] for better, worse in clip["index"]]} for clip in clips]
    path.write_text(json.dumps(turned), encoding="utf-8")


def change_preset(preset: Path) -> None:
    path = preset / "finetune.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("margin: 1.0", "margin: 5.0"), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["data", "preset"])
def test_what_changes_while_runs_are_made_is_no_part_of_a_table(
    what: str, file: Path, commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REPOSITORY / "configs" / "mini", tmp_path / "preset")
    rows = {name: row for name, row in SET["rows"].items() if name != "two"}
    write_set(tmp_path, seeds=[1], rows=rows, preset=str(tmp_path / "preset"))
    commands.before_next["train finetune"] = (
        (lambda: turn_pairs_round(tmp_path / "data"))
        if what == "data"
        else (lambda: change_preset(tmp_path / "preset"))
    )
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    changed = "first_second_data_pair_10pct.json: changed while runs were made"
    assert changed in message if what == "data" else "loss.margin: found 1.0, the run started with 5.0" in message
    assert "evaluate" not in commands
    assert not (tmp_path / "logs" / "small").exists()


@pytest.mark.slow
def test_a_table_is_not_made_of_evaluations_of_different_clips(
    file: Path, commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path, seeds=[1], rows={"stage 1": {"stages": ["pointwise"]}, "two": SET["rows"]["two"]})
    evaluated = 0

    def drop_a_clip_after_the_first() -> None:
        nonlocal evaluated
        evaluated += 1
        commands.before_next[EVALUATE] = drop_a_clip_after_the_first
        if evaluated == 2:
            path = tmp_path / "data" / "test_data.json"
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[1:]), encoding="utf-8")

    commands.before_next[EVALUATE] = drop_a_clip_after_the_first
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert (evaluated, ended.value.code) == (2, 2)
    assert "the data or the settings of evaluations changed while runs were evaluated" in capsys.readouterr().err
    assert not (tmp_path / "logs" / "small").exists()
    # Then only what is outdated is evaluated again.
    commands.before_next.clear()
    commands.clear()
    main(["compare", str(file)])
    assert commands == ["evaluate"]


@pytest.mark.slow
def test_a_value_is_not_chosen_by_figures_of_different_clips(
    file: Path, commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copy(data / "clean_feat.h5", data / "some.h5")
    with h5py.File(data / "some.h5", "a") as features:
        del features["validation-3"]
    row = {"stages": ["pointwise"], "settings": ["data.strict=false"]}
    row["tune"] = {"data.features": ["clean_feat.h5", "some.h5"]}  # type: ignore[assignment]
    write_set(tmp_path, seeds=[1], rows={"stage 1": {"stages": ["pointwise"]}, "tuned": row})
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    assert "chose their best steps on different validation clips" in capsys.readouterr().err
    assert "evaluate" not in commands


def test_settings_of_the_command_line_win_over_those_of_the_set(file: Path) -> None:
    given = ["finetune:train.weight_decay=0.5", "data.frames=2"]
    config = read_set(file, [*given, "seeds=[4]"])
    assert (config.seeds, config.overrides) == ([4], given)
    rows = {
        name: row.model_copy(update={"settings": ["train.weight_decay=0.1", "data.frames=1"]})
        for name, row in config.trained_rows.items()
    }
    plan = make_plan(config.model_copy(update={"rows": rows}))
    assert {training.config.data.frames for training in plan.trainings} == {2}
    decays = {(each.stage.name, each.config.train.weight_decay) for each in plan.trainings}  # type: ignore[attr-defined]
    assert decays == {("pointwise", 0.1), ("finetune", 0.5)}


@pytest.mark.slow
def test_runs_that_differ_in_a_loss_a_policy_or_its_defaults_are_different_runs(file: Path) -> None:
    chain = ["pointwise", "reward", "finetune", "ppo"]
    losses = ["hinge", "dpo", "ipo", "dpo", "dpo"]
    more = [[], [], [], ["finetune:loss.beta=1.0"], ["finetune:loss.beta=0.5"]]
    policies = ["exact", "partial_order", "grpo", "plackett_luce", "grpo"]
    rows = {
        str(place): {"stages": chain, "settings": [f"finetune:loss.name={loss}", f"ppo:policy.name={policy}", *own]}
        for place, (loss, policy, own) in enumerate(zip(losses, policies, more, strict=True))
    }
    path = write_set(file.parent, rows=rows, against="0", seeds=[1])
    found = [training.name for training in make_plan(read_set(path, [])).trainings]
    # Stages 1 and 2 are shared; a default that is written out is the same setting.
    assert [sum(name.startswith(stage) for name in found) for stage in chain] == [1, 1, 4, 5]


@pytest.mark.slow
def test_a_failing_run_ends_the_set_with_what_it_said(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The processes themselves are started here, both at a time: there are no more of them.
    another = {"stages": ["pointwise"], "settings": ["train.weight_decay=0.5"]}
    write_set(tmp_path, seeds=[1], parallel=10**9, rows={"stage 1": {"stages": ["pointwise"]}, "another": another})
    (tmp_path / "data" / "clean_feat.h5").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    assert "clean_feat.h5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "stage one"}, "against: found 'stage one', wanted one of the rows: stage 1, fine-tuned, two"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1], wanted different ones"),
        (
            {"rows": {"stage 1": {"stages": ["pointwise"]}, "x": {"stages": ["ppo"]}}},
            "rows.x: ppo starts from a run of",
        ),
        (
            {"rows": {"stage 1": {"stages": ["pointwise"]}, "x": {"stages": ["reward", "pointwise"]}}},
            "rows.x: reward starts from a run of pointwise or finetune, found reward, pointwise; add that stage before",
        ),
        (
            {"rows": {"stage 1": {"stages": ["pointwise"]}, "x": {"stages": ["pointwise", "pointwise"]}}},
            "rows.x.stages: found ['pointwise', 'pointwise'], wanted each stage once",
        ),
        ({"rows": {"stage 1": {"stages": ["pointwise"]}, "x": {"stages": ["pointwize"]}}}, "found 'pointwize'"),
        ({"settings": ["train.epocs=3"]}, "train.epocs=3: unknown key 'train.epocs'; did you mean train.epochs?"),
        ({"settings": ["finetune:train.max_labels=3"]}, "train.max_labels=3: unknown key"),
        ({"settings": ["seed=3"]}, "seed=3: a comparison sets the seed of its runs itself; remove this setting"),
        ({"data": {"tiny": ["data.root=/gone"]}}, "/gone/first_stage_data.json: cannot be read: No such file"),
        ({"data": {"a/b": ["data.root=x"]}}, "a/b"),
        ({"axis": "pairs"}, "data: found 'tiny', wanted a number, as there is an axis"),
        ({"settings": ["ppo:train.epochs=3"]}, "train.epochs=3: is not a setting of pointwise or finetune"),
        ({"overrides": ["train.learning_rate=3"]}, "the row 'fine-tuned' tries values of this; change its tune"),
        ({"overrides": ["train={learning_rate: 3}"]}, "the row 'fine-tuned' tries values of this; change its tune"),
        ({"overrides": [f"{RATE}=3"]}, "the row 'fine-tuned' tries values of this; change its tune"),
        (
            {"rows": SET["rows"] | {"stage 1": {"stages": ["pointwise"], "tune": {"data.validation": ["a", "b"]}}}},
            "rows.stage 1.tune: found data.validation, wanted values that are compared on the same clips",
        ),
        ({"rows": {"a": {"stages": ["pointwise"]}, "b\n": {"stages": ["pointwise"]}}}, "holds a control character"),
        ({"preset": "/gone"}, "/gone/evaluate.yaml: no such config file"),
    ],
)
def test_a_set_that_cannot_be_used_is_refused_before_any_run(
    changes: dict[str, Any],
    message: str,
    file: Path,
    commands: Commands,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_set(tmp_path, **changes)
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(file)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not commands
    assert not (tmp_path / "logs").exists()


def test_a_set_that_does_not_exist_is_answered_with_those_that_do() -> None:
    _, errors = answered_at_once(2, "compare", "mian")
    assert "configs/compare/mian.yaml: no such set; there are: " in errors
    assert "main" in errors


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of both worlds that the sets name."""
    root = tmp_path_factory.mktemp("generated")
    for world, folder in (("uniform", "mini-1"), ("varied", "varied-1")):
        write_mini(root / "data" / folder, seed=1, sizes=dict.fromkeys(SIZES, 2), world=world)
    return root


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs" / "compare").glob("*.yaml")), ids=lambda path: path.stem
)
def test_each_set_can_be_planned_on_generated_clips(
    file: Path, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(generated)
    config = load_config(file, "compare", ["seeds=[1]", f"preset={REPOSITORY / 'configs' / 'mini'}"])
    plan = make_plan(config)
    assert list(plan.attempts) == list(config.data)
    tried = {name: {len(rows[name]) for rows in plan.attempts.values()} for name in config.trained_rows}
    # The same care for every row that chooses: three values, two in the set of eight data sets.
    wanted = {2} if file.stem == "regimes" else {3}
    assert set[int]().union(*(counts for name, counts in tried.items() if config.trained_rows[name].tune)) <= wanted
    names = [training.name for training in plan.trainings]
    assert len(set(names)) == len(names)
    for place, training in enumerate(plan.trainings):
        assert all(getattr(training.config, key) in names[:place] for key in training.stage.sources)
