"""The pipeline trains and evaluates what is not finished, over seeds."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lr2ppo.cli import main
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import describe_model, save_model
from lr2ppo.stages import pipeline
from lr2ppo.stages.pipeline import run_pipeline
from tests.conftest import REPOSITORY

Overrides = Callable[..., list[str]]
PRESET = REPOSITORY / "configs" / "mini"
SHORT = ("data.frames=3", "train.epochs=1", "train.clips_per_batch=16", "device=cpu")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """Run the pipeline's commands in this process: scripts/reproduce.sh is tested as users run it, in tests/e2e."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_command", lambda *arguments: main(arguments))
        yield


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and the trained and evaluated runs `logs/STAGE/study-1` of seed 1."""
    root = tmp_path_factory.mktemp("pipeline")
    shutil.copytree(tiny_world, root / "data")
    run_pipeline("study", PRESET, settings(root), seeds=(1,))
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`, to change."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def settings(root: Path, *more: str) -> list[str]:
    return [
        *SHORT,
        "train.max_labels=6",
        "ppo:policy.kl_weight=0.5",
        f"data.root={root / 'data'}",
        f"logs={root / 'logs'}",
        *more,
    ]


def copy_run(logs: Path, stage: str, name: str, **changes: object) -> None:
    """Copy the run of seed 1, as if it had been trained under another name with other settings."""
    config = Path(shutil.copytree(logs / stage / "study-1", logs / stage / name)) / "config.yaml"
    changed = yaml.safe_load(config.read_text(encoding="utf-8")) | {"name": name} | changes
    config.write_text(yaml.safe_dump(changed), encoding="utf-8")


def change_grade(root: Path, file: str) -> None:
    path = root / "data" / file
    clips = json.loads(path.read_text(encoding="utf-8"))
    clips[0]["tags"][0]["target"] = 2 - clips[0]["tags"][0]["target"]
    path.write_text(json.dumps(clips), encoding="utf-8")


@pytest.mark.slow
def test_stages_not_yet_done_are_trained_and_evaluated_over_seeds(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = root / "logs"
    # Of seed 2, the stages before the last are there.
    copy_run(logs, "pointwise", "study-2", seed=2)
    copy_run(logs, "reward", "study-2", seed=2, ranker="study-2")
    kept = (logs / "ppo" / "study-1" / "finished.json").read_bytes()
    (logs / "reward" / "study-1" / "results.json").unlink()
    capfd.readouterr()
    runs = run_pipeline("study", PRESET, settings(root), seeds=(1, 2))
    printed = capfd.readouterr().out
    assert (printed.count(": finished already"), printed.count(": evaluated already")) == (6, 5)
    assert (logs / "ppo" / "study-1" / "finished.json").read_bytes() == kept
    # Stage 2a too: the preset's stage 3 starts from it.
    assert runs == [f"{stage}/study-{seed}" for seed in (1, 2) for stage in ("pointwise", "finetune", "reward", "ppo")]
    for run in runs:
        assert "test" in json.loads((logs / run / "results.json").read_text(encoding="utf-8"))
    for seed in (1, 2):
        config = yaml.safe_load((logs / "ppo" / f"study-{seed}" / "config.yaml").read_text(encoding="utf-8"))
        assert (config["seed"], config["policy"]["kl_weight"]) == (seed, 0.5)
        assert config["ranker"].endswith(f"finetune/study-{seed}")
        assert config["reward"].endswith(f"reward/study-{seed}")


@pytest.mark.slow
def test_finished_runs_are_trained_again_only_with_fresh(root: Path) -> None:
    finished = {stage: root / "logs" / stage / "study-1" / "finished.json" for stage in ("pointwise", "finetune")}
    kept = {stage: file.read_bytes() for stage, file in finished.items()}
    common = [*SHORT, f"data.root={root / 'data'}", f"logs={root / 'logs'}", "ranker=study-1"]
    for options in ((), ("--fresh",)):
        run_pipeline("study", PRESET, common, (1,), ["finetune"], options, evaluates=False)
        assert finished["pointwise"].read_bytes() == kept["pointwise"]
        assert (finished["finetune"].read_bytes() == kept["finetune"]) == (not options)


@pytest.mark.slow
def test_finished_runs_of_other_settings_data_or_sources_are_not_taken_for_those_asked_for(
    root: Path, trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    with pytest.raises(
        UserError, match=r"(?s)pointwise/study-1: .*another name, or train it again.*loss\.beta: found 0\.9, "
    ):
        run_pipeline("study", PRESET, settings(root, "pointwise:loss.beta=0.9"), seeds=(1,))
    with pytest.raises(UserError, match=r"(?s)ppo/study-1: .*policy\.kl_weight: found 0\.7"):
        run_pipeline("study", PRESET, settings(root, "ppo:policy.kl_weight=0.7"), seeds=(1,))
    # A run that resumes may have another batch on each process; one that has finished was trained with its own.
    with pytest.raises(UserError, match=r"(?s)reward/study-1: .*train\.clips_per_batch: found 5"):
        run_pipeline("study", PRESET, settings(root, "reward:train.clips_per_batch=5"), seeds=(1,))
    change_grade(root, "first_stage_data.json")
    with pytest.raises(
        UserError, match=r"(?s)pointwise/study-1: .*the annotations of data\.train: found other content"
    ):
        run_pipeline("study", PRESET, settings(root), seeds=(1,))
    assert capfd.readouterr().out == ""
    shutil.copy(trained / "data" / "first_stage_data.json", root / "data")

    ranker = root / "logs" / "pointwise" / "study-1"
    kept = (ranker / "finished.json").read_bytes()
    (ranker / "finished.json").unlink()
    with pytest.raises(
        UserError, match=r"finetune/study-1: is finished, but .*pointwise/study-1, which it starts from, is not"
    ):
        run_pipeline("study", PRESET, settings(root), seeds=(1,))
    (ranker / "finished.json").write_bytes(kept)
    # Trained again under its name: the runs of later stages started from other weights.
    save_model(ranker / "best", RelevanceRanker(describe_model(ranker / "best")[1]))
    with pytest.raises(UserError, match=r"(?s)finetune/study-1: .*the weights of its ranker run: found other content"):
        run_pipeline("study", PRESET, settings(root), seeds=(1,))


@pytest.mark.slow
def test_data_that_change_while_runs_are_made_end_the_pipeline_before_any_is_evaluated(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(root / "logs" / "ppo" / "study-1")

    def train_then_change(*arguments: str) -> None:
        main(arguments)
        change_grade(root, "first_stage_data.json")

    monkeypatch.setattr(pipeline, "run_command", train_then_change)
    with pytest.raises(UserError, match=r"(?s)pointwise/study-1: .*data\.train: found other content"):
        run_pipeline("study", PRESET, settings(root), seeds=(1,))
    assert not (root / "logs" / "ppo" / "study-1" / "results.json").exists()


@pytest.mark.slow
def test_runs_that_moved_with_their_data_are_those_asked_for_and_evaluated_again_only_on_other_data(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_pipeline("study", PRESET, settings(root), seeds=(1,))
    printed = capfd.readouterr().out
    assert (printed.count(": finished already"), printed.count(": evaluated already")) == (4, 4)
    change_grade(root, "test_data.json")
    run_pipeline("study", PRESET, settings(root), seeds=(1,))
    printed = capfd.readouterr().out
    assert (printed.count(": finished already"), printed.count(": evaluated already")) == (4, 0)
    assert f"root={root / 'data'}" in printed
    run_pipeline("study", PRESET, settings(root), seeds=(1,))
    assert capfd.readouterr().out.count(": evaluated already") == 4


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epocs=3", "did you mean train.epochs"),
        ("ppo:train.max_labels=3", "unknown key|not a setting of any stage"),
        ("loss.margin=x", "loss.margin: found 'x'"),
        ("data.root", "wanted an override key=value"),
        ("name=foo", "^name=foo: the pipeline gives every run its name, by its NAME; remove"),
        ("ppo:name=foo", "ppo:name=foo: the pipeline gives every run its name"),
        ("ppo:ranker=other", "^other: found no such run"),
        ("reward=elsewhere/other", "^elsewhere/other: found no such run"),
        ("ppo:reward=none", "^reward: found none, wanted newest"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_before_any_run_starts(
    setting: str, expected: str, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        run_pipeline("study", PRESET, tiny_overrides(*SHORT, setting))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("setting", ["seed=5", "reward:seed=5"])
def test_a_seed_beside_the_seeds_is_refused(setting: str, tiny_overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{setting}: the pipeline gives every run its seed, by --seeds; remove"):
        run_pipeline("study", PRESET, tiny_overrides(*SHORT, setting), seeds=(1, 2))
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_given_sources_take_the_place_of_the_runs_of_the_same_name(root: Path) -> None:
    logs = root / "logs"
    copy_run(logs, "pointwise", "other")
    own = settings(root, "seed=1", "reward:ranker=none", "ppo:ranker=study-1")
    run_pipeline("other", PRESET, own)
    configs = {
        stage: yaml.safe_load((logs / stage / "other" / "config.yaml").read_text(encoding="utf-8"))
        for stage in ("reward", "ppo")
    }
    assert configs["reward"]["ranker"] == "none"
    assert {key: configs["ppo"][key] for key in ("ranker", "reward")} == {
        "ranker": str(logs / "pointwise" / "study-1"),
        "reward": str(logs / "reward" / "other"),
    }
    # Finished, from the same runs: asked for again, nothing is trained; from others, it is refused.
    kept = (logs / "ppo" / "other" / "finished.json").read_bytes()
    run_pipeline("other", PRESET, own)
    assert (logs / "ppo" / "other" / "finished.json").read_bytes() == kept
    with pytest.raises(UserError, match=r"ranker: found '.*other', the run started with 'none'"):
        run_pipeline("other", PRESET, [setting for setting in own if setting != "reward:ranker=none"])
