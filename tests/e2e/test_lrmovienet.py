"""LRMovieNet's file layout through the stage scripts of its preset, with the flatten head at a small width."""

import json
import signal
from pathlib import Path

import h5py
import pytest
import torch

from lr2ppo.data import annotations
from lr2ppo.evaluation.published import PUBLISHED, published_best
from lr2ppo.models.published import load_published, write_published
from lr2ppo.models.weights import save_model
from lr2ppo.runs.listing import list_runs
from lr2ppo.runs.lookup import find_source_run
from lr2ppo.runs.stages import LR2PPO
from tests.conftest import REPOSITORY
from tests.helpers.lrmovienet import DATA, FRAMES, MODEL, SIZES, TOKENS, write_lrmovienet
from tests.helpers.workspace import Workspace, wait_for

EPOCHS = "train.epochs=1"
ROLLOUT = "train.batches_per_rollout=10"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The four stage scripts, run one after another over a small folder in LRMovieNet's layout."""
    made = Workspace.make(tmp_path_factory.mktemp("lrmovienet"), preset="lrmovienet")
    write_lrmovienet(made.root / "data" / "LRMovieNet")
    made.ok("sh", "pointwise.sh", "small", EPOCHS, *MODEL, *DATA)
    made.ok("sh", "reward_pair_dataloader.sh", "small", EPOCHS, *MODEL, *DATA)
    made.ok("sh", "ppo.sh", "small", EPOCHS, ROLLOUT, *DATA)
    made.ok("sh", "ppo_eval.sh", "ppo/small")
    return made


def test_the_scripts_use_the_lrmovienet_preset_by_default() -> None:
    launch = (REPOSITORY / "scripts" / "launch.sh").read_text(encoding="utf-8")
    assert '"${PRESET:=lrmovienet}"' in launch


def test_all_stages_run_over_files_as_they_are_published(workspace: Workspace) -> None:
    for stage in LR2PPO:
        folder = workspace.root / "logs" / stage / "small"
        shape = json.loads((folder / "best" / "config.json").read_text(encoding="utf-8"))["shape"]
        assert (shape["head"], shape["attention"], shape["text_tokens"]) == ("flatten", "published", TOKENS)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"]
    assert results["clips"] == SIZES["test"]


CONVERT = '"$PYTHON" -m lr2ppo published'
HEAD = f"--text-tokens {TOKENS} --frames {FRAMES}"


@pytest.fixture(scope="module")
def converted(workspace: Workspace) -> Workspace:
    """Each stage's weights as a published checkpoint, and runs `theirs` beside `small` that are converted from it.

    Runs `early` are as converted before conversion wrote a config: only weights.
    """
    for stage in LR2PPO:
        checkpoint = workspace.root / "published" / f"{stage}.bin"
        write_published(workspace.root / "logs" / stage / "small", checkpoint)
        save_model(workspace.root / "logs" / stage / "early" / "best", load_published(checkpoint, TOKENS, FRAMES))
        made = workspace.ok("sh", "-c", f"{CONVERT} published/{stage}.bin logs/{stage}/theirs/best {HEAD}")
        assert made.startswith(f"logs/{stage}/theirs: a {LR2PPO[stage].model} of ")
    return workspace


def test_a_converted_run_is_written_as_a_published_checkpoint_again(converted: Workspace) -> None:
    converted.ok("sh", "-c", f"{CONVERT} --to-published logs/reward/theirs again.bin")
    first, again = (
        torch.load(converted.root / name, weights_only=True) for name in ("published/reward.bin", "again.bin")
    )
    assert list(first) == list(again)
    assert all(first[name].equal(again[name]) for name in first)
    assert "implies text_tokens + frames = 10" in converted.refused("sh", "-c", f"{CONVERT} again.bin x/best")
    assert not (converted.root / "x").exists()


def test_converted_runs_are_listed_and_evaluated_on_the_clips_of_their_preset(converted: Workspace) -> None:
    cases = {}
    for name in ("small", "theirs", "early"):
        if name != "small":
            # The preset takes 16 frames of a clip, which would not fit a head of 4.
            converted.ok("sh", "ppo_eval.sh", f"ppo/{name}")
        folder = converted.root / "logs" / "ppo" / name
        cases[name] = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["test"]
        assert "data/LRMovieNet" in (folder / "report.html").read_text(encoding="utf-8")
    for name in ("theirs", "early"):
        assert [case["scores"] for case in cases[name]] == [case["scores"] for case in cases["small"]]
    states = {(run.stage, run.name): run.state for run in list_runs(converted.root / "logs")}
    assert {states[stage, name] for stage in LR2PPO for name in ("theirs", "early")} == {"converted"}


@pytest.mark.parametrize("name", ["theirs", "early"])
def test_stage_3_starts_from_converted_checkpoints(converted: Workspace, name: str) -> None:
    printed = converted.ok("sh", "ppo.sh", f"from-{name}", f"ranker={name}", f"reward={name}", EPOCHS, ROLLOUT, *DATA)
    assert f"actor logs/pointwise/{name}, reward model logs/reward/{name}" in printed


def test_the_newest_run_is_one_that_was_trained_here(converted: Workspace) -> None:
    assert find_source_run("newest", ("pointwise",), "lrmovienet", converted.root / "logs").name == "small"


def test_the_reproduction_resumes_where_it_stopped_and_ends_with_its_table(workspace: Workspace) -> None:
    started = workspace.start(
        "sh", "ppo.sh", "small", "--fresh", EPOCHS, ROLLOUT, *DATA, "safety.checkpoint_minutes=1e-6"
    )
    wait_for(lambda: any((workspace.root / "logs" / "ppo" / "small" / "checkpoints").glob("step-*")))
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 143
    overrides = (EPOCHS, f"ppo:{ROLLOUT}", *MODEL, *DATA)
    printed = workspace.ok("sh", "scripts/reproduce.sh", "small", *overrides)
    assert printed.count("finished already") == 2
    assert "resuming from logs/ppo/small/checkpoints/step-" in printed
    table = printed[printed.index("Ours beside the published figures") :]
    places = [table.index(stage.title) for stage in LR2PPO.values()]
    assert places == sorted(places)
    assert table.split("published, validation")[1].split()[:5] == ["0.6330", "0.6018", "0.6061", "0.6667", "0.8021"]
    assert table.count("ours, test") == 3
    again = workspace.ok("sh", "scripts/reproduce.sh", "small", *overrides)
    assert (again.count("finished already"), again.count("evaluated already")) == (3, 3)
    assert again.endswith(table)


def test_the_published_figures_are_the_best_rows_of_their_curves() -> None:
    found = {name: published_best(stage) for name, stage in PUBLISHED.items()}
    assert list(found["ppo"].values()) == [0.6927, 0.6711, 0.6927, 0.7602, 0.8479]
    assert found["reward"] == {"pair_accuracy": 0.7761}


def test_the_check_prints_what_a_folder_contains(workspace: Workspace) -> None:
    printed = workspace.ok("sh", "scripts/check_data.sh", "data/LRMovieNet")
    assert printed.splitlines()[-1] == "training can start"
    assert "10 clips; " in printed
    assert "3 to 37 a clip; grades 0: " in printed
    assert " pairs\n" in printed
    assert f"text of up to {TOKENS} tokens x 16; 1 to 40 frames a clip, 1 token a frame x 16" in printed
    assert "frames are not under data/LRMovieNet, such as tt0001/shot_0000_img_0.jpg" in printed
    assert "share" not in printed


@pytest.fixture
def faulty(workspace: Workspace, tmp_path: Path) -> Path:
    """A folder with one fault of each kind."""
    root = write_lrmovienet(tmp_path / "faulty")
    with h5py.File(root / "clean_feat.h5", "a") as store:
        del store["tt0002"]
        store["tt0003/text_emb"][1, 2, 3] = float("nan")
        rows = store["tt1004/text_emb"][:-1]
        del store["tt1004/text_emb"]
        store["tt1004/text_emb"] = rows
        store["tt2001/img_emb"][0, 0, 0] = float("inf")
    test = json.loads((root / annotations.TEST).read_text(encoding="utf-8"))
    source = json.loads((root / annotations.SOURCE_TRAIN).read_text(encoding="utf-8"))
    (root / annotations.TEST).write_text(json.dumps([*test, source[0]]), encoding="utf-8")
    return root


def test_the_check_names_every_fault_and_refuses(workspace: Workspace, faulty: Path) -> None:
    done = workspace.run("sh", "scripts/check_data.sh", str(faulty))
    assert done.returncode == 2
    assert "first_stage_data.json and test_data.json share 1 clips, such as tt0000" in done.stdout
    for fault in (
        "first_stage_data.json: clip tt0002: has no features",
        "first_second_stage_data.json: clip tt1004: found features of",
        "clip tt0003: text features of 'label 1' are not finite",
        "clip tt2001: frame features are not finite",
    ):
        assert fault in done.stderr
    assert "training can start" not in done.stdout


def test_a_stage_refuses_the_faults_of_what_it_reads_and_no_others(workspace: Workspace, faulty: Path) -> None:
    stage = (EPOCHS, f"data.root={faulty}", *DATA)
    refused = workspace.refused("sh", "pointwise.sh", "x", *stage, *MODEL)
    assert "clip tt0002: has no features" in refused
    with h5py.File(faulty / "clean_feat.h5", "a") as store:
        store.copy("tt0000", "tt0002")
    labels = len(json.loads((faulty / annotations.SOURCE_TRAIN).read_text(encoding="utf-8"))[2]["tags"])
    with h5py.File(faulty / "clean_feat.h5", "a") as store:
        del store["tt0002/text_emb"]
        store["tt0002/text_emb"] = [[[0.0] * 16] * TOKENS] * labels
    refused = workspace.refused("sh", "pointwise.sh", "x", *stage, *MODEL, processes=2)
    assert "clip tt0003: text features of 'label 1' are not finite" in refused
    assert "clip tt2001: frame features are not finite" in refused
    assert not (workspace.root / "logs" / "pointwise" / "x").exists()
    with h5py.File(faulty / "clean_feat.h5", "a") as store:
        store["tt0003/text_emb"][1, 2, 3] = store["tt2001/img_emb"][0, 0, 0] = 0.0
    assert "finished in" in workspace.ok("sh", "pointwise.sh", "fixed", *stage, *MODEL)


def test_features_of_more_tokens_than_the_flatten_head_takes_are_refused(workspace: Workspace) -> None:
    refused = workspace.refused("sh", "pointwise.sh", "x", "model.width=16", "model.text_tokens=5", *DATA)
    assert f"found {TOKENS} text tokens, the model takes 5" in refused
