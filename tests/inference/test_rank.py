"""Trained models in use: raw clips get the scores of evaluation, only with the encoders that the run names."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lr2ppo import LabelRanker, Preference, Query
from lr2ppo.cli import main
from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.data.features.encoders import COMPARED, FEATURES_FILE
from lr2ppo.data.frames import read_frames
from lr2ppo.encoders.extractor import EncoderPaths, open_encoders
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import preference_table
from lr2ppo.files import WEIGHTS_FILE, read_json, write_json
from lr2ppo.inference.file import rank_file
from lr2ppo.inference.labels import RankedLabel, format_ranking
from lr2ppo.inference.trained import open_trained
from lr2ppo.models import PartialOrderModel
from lr2ppo.models.weights import describe_model, load_kind
from lr2ppo.report.load import find_rows
from lr2ppo.runs.lookup import best_validation
from lr2ppo.stages.evaluate import evaluate
from lr2ppo.tensors import read_tensors, write_tensors
from tests.conftest import REPOSITORY
from tests.helpers.trained_world import TrainedWorld
from tests.helpers.untrained_world import CALIBRATION


@pytest.fixture(scope="module")
def ranker(trained_world: TrainedWorld) -> LabelRanker:
    return LabelRanker.load("ppo/one", logs=trained_world.logs, device="cpu")


@pytest.fixture
def query(trained_world: TrainedWorld) -> Query:
    """A test clip, whose frames are paths."""
    return trained_world.queries()[0]


@pytest.mark.parametrize("run", ["pointwise/one", "pointwise/flatten", "reward/one", "ppo/one"])
def test_a_clip_of_the_data_set_gets_the_scores_of_evaluation(trained_world: TrainedWorld, run: str) -> None:
    ranker = LabelRanker.load(run, logs=trained_world.logs, device="cpu")
    assert (ranker.name, ranker.warning) == (run, "")
    cases = trained_world.cases(run)
    ranked = ranker.rank_batch(trained_world.queries())
    for case, found in zip(cases, ranked, strict=True):
        scores = {each.label: each.score for each in found}
        np.testing.assert_allclose([scores[label] for label in case["labels"]], case["scores"], atol=1e-5)
        assert sorted(scores.values(), reverse=True) == [each.score for each in found]


def test_frames_in_random_order_are_those_of_evaluation(trained_world: TrainedWorld, tmp_path: Path) -> None:
    """They depend on the clip, not on those beside it."""
    logs, data = (shutil.copytree(trained_world.root / name, tmp_path / name) for name in ("logs", "data"))
    path = logs / "pointwise" / "one" / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["data"] |= {"frame_order": "random", "frames": 2}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    clips = read_json(data / "test_data.json")[1:]
    write_json(data / "test_data.json", clips)
    settings = ["name=pointwise/one", f"logs={logs}", f"root={data}", "device=cpu", "workers=0"]
    evaluate(load_config(REPOSITORY / "configs" / "mini" / "evaluate.yaml", "evaluate", settings))
    ranker = LabelRanker.load("pointwise/one", logs=logs, device="cpu")
    queries = [replace(query, id=clip["id"]) for query, clip in zip(trained_world.queries()[1:], clips, strict=True)]
    cases = read_json(logs / "pointwise" / "one" / "cases.json")["test"]
    for case, scores in zip(cases, ranker.score_batch(queries), strict=True):
        np.testing.assert_allclose(scores, case["scores"], atol=1e-5)


def test_frames_may_be_a_folder_paths_pictures_or_arrays(ranker: LabelRanker, query: Query, tmp_path: Path) -> None:
    assert isinstance(query.frames, list)
    paths: list[Path] = query.frames
    for number, path in enumerate(paths):
        # In alphabetical order, frame 10 would come before frame 8.
        shutil.copy(path, tmp_path / f"frame {number + 8}.jpg")
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    pictures = [Image.open(path) for path in paths]
    wanted = ranker.rank(paths, query.labels, query.description)
    for frames in (tmp_path, str(tmp_path), pictures, [np.asarray(each) for each in pictures], list(map(str, paths))):
        found = ranker.rank(frames, query.labels, query.description)
        assert [each.label for each in found] == [each.label for each in wanted]
        np.testing.assert_allclose([each.score for each in found], [each.score for each in wanted], atol=1e-6)


def write_video(path: Path, frames: int, size: tuple[int, int] = (48, 128)) -> Path:
    """Write a video of a white bar that moves right by 2 pixels per frame; 11 frames between key frames."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10, options={"g": "12"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 8_000_000
        for number in range(frames):
            picture = np.zeros((*size, 3), np.uint8)
            picture[:, 2 * number : 2 * number + 16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def place_of_bar(frame: Image.Image) -> float:
    """Return the number of a frame that `write_video` has drawn."""
    brightness = np.asarray(frame.convert("L")).astype(float).mean(0)
    return float((brightness * np.arange(len(brightness))).sum() / brightness.sum() - 7.5) / 2


def evenly(count: int) -> Callable[[int], NDArray[np.int64]]:
    return lambda available: np.linspace(0, available - 1, count).round().astype(np.int64)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts"])
def test_frames_of_a_video_are_those_at_the_places_chosen(tmp_path: Path, name: str) -> None:
    frames = read_frames(write_video(tmp_path / name, 50), evenly(4))
    np.testing.assert_allclose([place_of_bar(frame) for frame in frames], [0, 16, 33, 49], atol=0.4)


def test_a_video_cut_short_gives_the_frames_it_has(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.ts", 50)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    places = [place_of_bar(frame) for frame in read_frames(path, evenly(3))]
    assert places == sorted(places)
    assert places[0] == pytest.approx(0, abs=0.4)
    assert 10 < places[-1] < 48


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.ffconcat", "ffconcat version 1.0\nfile other.ts\n"),
        ("clip.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.ts\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_file_that_names_other_files_is_no_video(tmp_path: Path, name: str, content: str) -> None:
    write_video(tmp_path / "other.ts", 20)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="is not a readable video"):
        read_frames(tmp_path / name, evenly(2))


def test_a_missing_video_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"any")
    with pytest.raises(UserError, match=r"pip install '\.\[video\]'"):
        read_frames(tmp_path / "clip.mp4", evenly(2))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "frames: found none"),
        ("gone", "gone: no such file or folder"),
        ([np.zeros((4, 4, 3), np.float32)], r"frame 0: found float32 \(4, 4, 3\), wanted a path"),
        (np.zeros((1, 200, 3), np.uint8), "frame 0: has 200 x 1 pixels"),
        ([np.zeros((0, 0, 3), np.uint8)], "frame 0: has 0 x 0 pixels"),
        ([None], "frame 0: found NoneType"),
        (5, "frames: found int, wanted a folder"),
        ({"a.jpg"}, "frames: found set, wanted a folder"),
        ({"a.jpg": 1}, "frames: found dict, wanted a folder"),
        (np.array(5), r"frame 0: found int64 \(\), wanted a path"),
        ("x" * 300, "xxx: File name too long"),
        (["x" * 300], "xxx: is not a readable image"),
    ],
)
def test_invalid_frames_are_refused(ranker: LabelRanker, frames: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ranker.rank(frames, ["boat"])


def test_a_folder_without_images_is_refused(ranker: LabelRanker, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found no images"):
        ranker.rank(tmp_path, ["boat"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least one"),
        ("boat", "wanted a list"),
        (["boat", " "], "found ' ' at place 2"),
        (["boat", 3], "found 3 at place 2"),
        (["boat", "\ud800"], "at place 2"),
        (["boat", "\u200b"], r"found '\\u200b' at place 2"),
        (["boat", "a  car", "a car"], "found 'a  car' and 'a car', which look the same"),
        (["café", "cafe\u0301"], "which look the same"),
        (["boat", "car", "boat"], "found 'boat' more than once"),
        (None, "found None, wanted a list"),
        (5, "found 5, wanted a list"),
        ({"boat", "car"}, "wanted a list"),
        ({"boat": 1}, "wanted a list"),
        ((label for label in ("boat", "car")), "wanted a list"),
        (np.array("boat"), "wanted a list"),
        (np.array([["boat", "car"]]), "wanted a list"),
        (b"boat", "wanted a list"),
    ],
)
def test_invalid_labels_are_refused(ranker: LabelRanker, query: Query, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ranker.rank(query.frames, labels)


def test_labels_may_be_a_tuple_or_an_array(ranker: LabelRanker, query: Query) -> None:
    wanted = ranker.rank(query.frames, list(query.labels))
    others: list[Any] = [tuple(query.labels), np.array(query.labels)]
    for labels in others:
        assert ranker.rank(query.frames, labels) == wanted


@pytest.mark.parametrize("queries", [None, 5, [5], [("a.jpg", ["boat"])], iter([Query(None, ["boat"])])])
def test_queries_that_are_none_are_refused(ranker: LabelRanker, queries: Any) -> None:
    for rank in (ranker.rank_batch, ranker.score_batch):
        with pytest.raises(UserError, match="queries: found"):
            rank(queries)


def test_scores_of_what_are_no_labels_are_refused(ranker: LabelRanker) -> None:
    for labels in (None, "boat", {"boat"}, [5]):
        with pytest.raises(UserError, match="labels: found"):
            ranker.score_batch([Query(None, labels)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "more", "message"),
    [
        (None, {}, "run: found None, wanted a text or a path"),
        (5, {}, "run: found 5"),
        (b"one", {}, "run: found b'one'"),
        ("x" * 300, {}, "xxx.*: File name too long"),
        ("ppo/" + "x" * 300, {}, "xxx.*: File name too long"),
        ("a\0b", {}, "found no such run"),
        ("ppo/one", {"logs": None}, "logs: found None"),
        ("ppo/one", {"logs": "x" * 300}, "xxx.*: File name too long"),
        ("ppo/one", {"text": 5}, "text: found 5"),
        ("ppo/one", {"image": "x" * 300}, "xxx.*: File name too long"),
        ("ppo/one", {"device": None}, "device: found None, wanted a text"),
        ("ppo/one", {"by": "rewards"}, "by: found 'rewards', wanted ranker or reward"),
        ("pointwise/one", {"by": "reward"}, "is a pointwise run without a reward model"),
    ],
)
def test_what_names_no_run_is_refused(
    trained_world: TrainedWorld, run: Any, more: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"logs": trained_world.logs, "device": "cpu"} | more
    with pytest.raises(UserError, match=message):
        LabelRanker.load(run, **options)


def test_encoders_may_have_moved_but_not_be_others(trained_world: TrainedWorld, tmp_path: Path, query: Query) -> None:
    moved = shutil.copytree(trained_world.encoders, tmp_path / "moved")
    run, others = trained_world.logs / "pointwise" / "one", moved / "others"
    (moved / "vit").rename(moved / "eyes")
    ranker = LabelRanker.load(run, text=moved / "roberta", image=moved / "eyes", device="cpu")
    scores = {each.label: each.score for each in ranker.rank(query.frames, query.labels, query.description)}
    case = trained_world.cases("pointwise/one")[0]
    np.testing.assert_allclose([scores[label] for label in case["labels"]], case["scores"], atol=1e-5)
    with pytest.raises(UserError, match=r"found image_encoder vit@\w+, wanted vit@\w+ .*others/vit"):
        LabelRanker.load(run, image=others / "vit", device="cpu")
    with pytest.raises(UserError, match=r"found text_encoder roberta@\w+, wanted roberta@\w+"):
        LabelRanker.load(run, text=others / "roberta", device="cpu")


def test_encoders_that_do_not_fit_the_model_are_refused_as_features_are(trained_world: TrainedWorld) -> None:
    encoders = EncoderPaths(text=trained_world.encoders / "roberta", image=trained_world.encoders / "vit")
    shape = describe_model(trained_world.logs / "pointwise" / "one" / "best")[1]
    cpu = torch.device("cpu")
    open_encoders("pointwise/one", None, encoders, shape, cpu)
    other = shape.model_copy(update={"text_width": 7})
    with pytest.raises(
        UserError,
        match=rf"^pointwise/one: features do not fit its model: found text width {shape.text_width}, wanted 7 ",
    ):
        open_encoders("pointwise/one", None, encoders, other, cpu)


def copy_run(world: TrainedWorld, run: str, to: Path, **encoders: Any) -> Path:
    """Copy a run to other logs, with other encoders recorded for its features; none if `encoders` is empty."""
    folder = shutil.copytree(world.logs / run, to / "logs" / run)
    facts = json.loads((folder / FEATURES_FILE).read_text(encoding="utf-8"))
    facts["encoders"] = facts["encoders"] | encoders if encoders else None
    (folder / FEATURES_FILE).write_text(json.dumps(facts), encoding="utf-8")
    return folder


def test_encoders_that_are_gone_are_named_with_the_place_they_were_at(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    run = copy_run(trained_world, "pointwise/one", tmp_path, image_path="gone/vit")
    with pytest.raises(UserError, match=r"image encoder vit@\w+ was gone/vit at extraction.*image="):
        LabelRanker.load(run, device="cpu")


def test_a_tokenizer_of_another_vocabulary_is_refused(trained_world: TrainedWorld, tmp_path: Path) -> None:
    run = copy_run(trained_world, "pointwise/one", tmp_path, tokenizer="roberta@0123456789ab")
    with pytest.raises(UserError, match=r"found tokenizer roberta@\w+, wanted roberta@0123456789ab"):
        LabelRanker.load(run, device="cpu")


def test_a_run_that_names_no_encoders_takes_those_given_and_warns(
    trained_world: TrainedWorld, tmp_path: Path, query: Query
) -> None:
    run = copy_run(trained_world, "pointwise/one", tmp_path)
    with pytest.raises(UserError, match="name no text encoder; give its path"):
        LabelRanker.load(run, device="cpu")
    encoders = trained_world.encoders
    ranker = LabelRanker.load(run, text=encoders / "roberta", image=encoders / "vit", device="cpu")
    assert "name no encoders" in ranker.warning
    (found,) = ranker.score_batch([query])
    np.testing.assert_allclose(found, trained_world.cases("pointwise/one")[0]["scores"], atol=1e-5)


def test_weights_without_a_run_rank_with_encoders_that_are_given(trained_world: TrainedWorld, tmp_path: Path) -> None:
    roberta, vit = trained_world.encoders / "roberta", trained_world.encoders / "vit"
    for run in ("pointwise/flatten", "reward/one"):
        place = tmp_path / "converted" / Path(run).name
        shutil.copytree(trained_world.logs / run / "best", place / "best")
        ranker = LabelRanker.load(place, text=roberta, image=vit, device="cpu")
        assert ranker.has_preferences == (run == "reward/one")
        for case, found in zip(trained_world.cases(run), ranker.score_batch(trained_world.queries()), strict=True):
            np.testing.assert_allclose(found, case["scores"], atol=1e-5)


def test_weights_whose_scores_are_no_numbers_give_no_order(
    trained_world: TrainedWorld, query: Query, tmp_path: Path
) -> None:
    roberta, vit = trained_world.encoders / "roberta", trained_world.encoders / "vit"
    for run in ("ppo/one", "reward/one"):
        best = tmp_path / Path(run).name / "best"
        shutil.copytree(trained_world.logs / run / "best", best, dirs_exist_ok=True)
        tensors = read_tensors(best / WEIGHTS_FILE)
        write_tensors(best / WEIGHTS_FILE, tensors | {"score.weight": torch.full_like(tensors["score.weight"], 3e38)})
        ranker = LabelRanker.load(best.parent, text=roberta, image=vit, device="cpu")
        with pytest.raises(UserError, match=r"best/model\.safetensors: found scores that are not finite"):
            ranker.score_batch([query])
        if ranker.has_preferences:
            with pytest.raises(UserError, match="found scores that are not finite"):
                ranker.preferences(query.frames, ["car", "sky"])


def test_a_preference_is_the_margin_of_both_ways_to_show_a_pair_over_the_temperature(
    trained_world: TrainedWorld, ranker: LabelRanker, query: Query
) -> None:
    table = ranker.preferences(query.frames, query.labels, query.description)
    assert table.shape == (len(query.labels),) * 2
    np.testing.assert_array_equal(np.diag(table), 0.5)
    np.testing.assert_allclose(table + table.T, 1, atol=1e-12)
    reward_run = trained_world.logs / "reward" / "one"
    model = load_kind(reward_run / "best", PartialOrderModel)
    batch = ranker.encode([query])
    orders = torch.tensor([[[0, 3, 0, 3], [0, 3, 3, 0], [3, 0, 0, 3], [3, 0, 3, 0]]])
    with torch.no_grad():
        masks = {"text_mask": batch.text_mask, "frame_mask": batch.frame_mask}
        as_it_is, reverse, other_way, other_reverse = model(batch.text, batch.frames, orders, **masks)[0].tolist()
    margin = (as_it_is - reverse + other_way - other_reverse) / 2
    wanted = 1 / (1 + np.exp(-margin / best_validation(reward_run)["temperature"]))
    assert table[0, 3] == pytest.approx(wanted, abs=1e-5)
    better, worse = (0, 3) if wanted >= 0.5 else (3, 0)
    for a, b in ((0, 3), (3, 0)):
        found = ranker.compare(query.frames, query.labels[a], query.labels[b], query.description)
        assert (found.first, found.second) == (query.labels[better], query.labels[worse])
        assert found.probability == pytest.approx(max(wanted, 1 - wanted), abs=1e-5)
    assert ranker.preferences(query.frames, ["boat"]).tolist() == [[0.5]]


@settings(deadline=None, max_examples=20)
@given(labels=st.integers(1, 6), clips=st.integers(1, 3), temperature=st.floats(0.01, 100), seed=st.integers(0, 99))
def test_preferences_of_any_labels_are_probabilities_that_agree(
    labels: int, clips: int, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    shape = ModelConfig(head="pooled", attention="scaled", width=8, heads=2, dropout=0.0)
    model, vectors = PartialOrderModel(shape).eval(), torch.randn(clips, labels, 8)
    with torch.no_grad():
        table = preference_table(model, vectors, temperature)
        shuffled = torch.randperm(labels)
        again = preference_table(model, vectors[:, shuffled], temperature)
    assert ((table >= 0) & (table <= 1)).all()
    torch.testing.assert_close(table + table.mT, torch.ones_like(table))
    torch.testing.assert_close(again, table[:, shuffled][:, :, shuffled], atol=1e-3 / min(1, temperature), rtol=0)


def test_a_ranker_without_reward_model_reports_it(
    trained_world: TrainedWorld, query: Query, ranker: LabelRanker
) -> None:
    before = ranker.before
    assert before is not None
    assert (before.name, before.has_preferences, ranker.has_preferences) == ("pointwise/one", False, True)
    assert before.before is None
    with pytest.raises(UserError, match=r"is a pointwise run without a reward model"):
        before.compare(query.frames, "boat", "car")
    (found,) = before.score_batch([query])
    np.testing.assert_allclose(found, trained_world.cases("pointwise/one")[0]["scores"], atol=1e-5)


def test_a_run_of_stage_3_that_starts_from_a_fine_tuned_ranker_is_shown_beside_stage_1(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    logs = shutil.copytree(trained_world.logs, tmp_path / "logs")
    # A copy of the stage 1 run in the place of a fine-tuned one.
    tuned = shutil.copytree(logs / "pointwise" / "one", logs / "finetune" / "two")
    config = (tuned / "config.yaml").read_text(encoding="utf-8").replace("stage: pointwise", "stage: finetune")
    (tuned / "config.yaml").write_text(f"{config}ranker: {logs / 'pointwise' / 'one'}\n", encoding="utf-8")
    path = logs / "ppo" / "one" / "config.yaml"
    config = re.sub("(?m)^ranker: .*", f"ranker: {tuned}", path.read_text(encoding="utf-8"))
    path.write_text(config, encoding="utf-8")
    before = open_trained("ppo/one", logs).before
    assert before is not None
    assert before.use.name == "pointwise/one"
    shutil.rmtree(logs / "pointwise" / "one")
    before = open_trained("ppo/one", logs).before
    assert before is not None
    assert before.use.name == "finetune/two"


def test_a_clip_can_be_ranked_by_the_reward_model_of_a_run(trained_world: TrainedWorld) -> None:
    logs, queries = trained_world.logs, trained_world.queries()[:3]
    wanted = LabelRanker.load("reward/one", logs=logs, device="cpu").rank_batch(queries)
    by_reward = LabelRanker.load("ppo/one", logs=logs, by="reward", device="cpu")
    assert by_reward.rank_batch(queries) == wanted
    assert (by_reward.has_preferences, by_reward.before) == (True, None)


def test_a_run_whose_logs_were_moved_finds_the_runs_that_moved_with_it(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    logs = shutil.copytree(trained_world.logs, tmp_path / "moved")
    trained, reported = open_trained("ppo/one", logs), find_rows(["ppo/one"], logs)
    assert trained.before is not None
    found = [trained.before.run, trained.reward and trained.reward.parent, trained.run]
    assert found == [logs / stage / "one" for stage in ("pointwise", "reward", "ppo")]
    assert reported == [[folder] for folder in found]


def test_a_run_whose_earlier_runs_are_gone_still_ranks(
    trained_world: TrainedWorld, tmp_path: Path, query: Query
) -> None:
    run = shutil.copytree(trained_world.logs / "ppo" / "one", tmp_path / "logs" / "ppo" / "one")
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace(str(trained_world.logs), "gone"), encoding="utf-8")
    ranker = LabelRanker.load("ppo/one", logs=tmp_path / "logs", device="cpu")
    assert (ranker.before, ranker.has_preferences) == (None, False)
    assert len(ranker.rank(query.frames, query.labels)) == len(query.labels)
    with pytest.raises(UserError, match=r"its reward model gone/reward/one no longer exists"):
        ranker.preferences(query.frames, query.labels)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, lr2ppo; assert 'torch' not in sys.modules; assert not hasattr(lr2ppo, 'Ranker')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert Preference("a", "b", 0.5) == Preference("a", "b", 0.5)


def test_ranking_a_file_resumes_after_its_last_complete_line(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    annotations, out = trained_world.data / "test_data.json", tmp_path / "new" / "ranked.jsonl"
    assert rank_file(ranker, annotations, trained_world.data, out) == (6, 0)
    whole = out.read_text(encoding="utf-8")
    for case, line in zip(trained_world.cases("ppo/one"), whole.splitlines(), strict=True):
        row = json.loads(line)
        assert row["id"] == case["id"]
        scores = dict(zip(row["labels"], row["scores"], strict=True))
        np.testing.assert_allclose([scores[label] for label in case["labels"]], case["scores"], atol=1e-5)
        assert row["scores"] == sorted(row["scores"], reverse=True)
    out.write_text(whole[: whole.index("\n", len(whole) // 2) + 20], encoding="utf-8")
    written, there = rank_file(ranker, annotations, trained_world.data, out)
    assert (written + there, 0 < there < 6) == (6, True)
    assert out.read_text(encoding="utf-8") == whole
    assert rank_file(ranker, annotations, trained_world.data, out) == (0, 6)


def test_a_file_of_another_model_or_with_other_labels_is_not_changed(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    annotations, out = tmp_path / "clips.json", tmp_path / "ranked.jsonl"
    shutil.copy(trained_world.data / "test_data.json", annotations)
    rank_file(ranker, annotations, trained_world.data, out)
    content = out.read_bytes()
    before = ranker.before
    assert before is not None
    with pytest.raises(UserError, match=r"started with another model: run ppo/one, now pointwise/one; weights"):
        rank_file(before, annotations, trained_world.data, out)
    clips = json.loads(annotations.read_text(encoding="utf-8"))
    clips[2]["tags"][0]["tag"] = "another"
    annotations.write_text(json.dumps(clips), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 3: clip test-0002 has other labels now"):
        rank_file(ranker, annotations, trained_world.data, out)
    (tmp_path / "ranked.jsonl.run.json").unlink()
    with pytest.raises(UserError, match=r"exists without .*ranked\.jsonl\.run\.json"):
        rank_file(ranker, annotations, trained_world.data, out)
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("file", "section", "key", "value", "message"),
    [
        ("config.yaml", "data", "frames", 1, "frames 4, now 1"),
        ("config.yaml", "data", "frame_order", "random", "frame_order even, now random"),
        ("best/config.json", "shape", "heads", 4, "model.heads 8, now 4"),
        ("best/config.json", "shape", "attention", "published", "model.attention scaled, now published"),
    ],
)
def test_a_file_of_a_model_of_equal_weights_that_reads_a_clip_otherwise_is_not_changed(
    trained_world: TrainedWorld, tmp_path: Path, file: str, section: str, key: str, value: Any, message: str
) -> None:
    logs, out = shutil.copytree(trained_world.logs, tmp_path / "logs"), tmp_path / "ranked.jsonl"
    annotations = trained_world.data / "test_data.json"
    rank_file(LabelRanker.load("ppo/one", logs=logs, device="cpu"), annotations, trained_world.data, out)
    lines = out.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:2]), encoding="utf-8")
    # JSON is YAML, too.
    path = logs / "ppo" / "one" / file
    changed = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed[section][key] = value
    path.write_text(json.dumps(changed), encoding="utf-8")
    ranker = LabelRanker.load("ppo/one", logs=logs, device="cpu")
    with pytest.raises(UserError, match=f"was started with another model: {message}; give another --out"):
        rank_file(ranker, annotations, trained_world.data, out)
    assert out.read_text(encoding="utf-8") == "".join(lines[:2])
    # Earlier versions did not record it.
    identity = tmp_path / "ranked.jsonl.run.json"
    recorded = json.loads(identity.read_text(encoding="utf-8"))
    early = {name: recorded[name] for name in ("run", "weights", *COMPARED)}
    identity.write_text(json.dumps(early), encoding="utf-8")
    assert rank_file(ranker, annotations, trained_world.data, out) == (4, 2)


@pytest.mark.parametrize("changed", ["description", "frame", "order of frames"])
def test_a_file_whose_clips_changed_since_they_were_ranked_is_refused(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path, changed: str
) -> None:
    data = shutil.copytree(trained_world.data, tmp_path / "data", ignore=shutil.ignore_patterns("*.h5"))
    annotations, out = data / "test_data.json", tmp_path / "ranked.jsonl"
    rank_file(ranker, annotations, data, out)
    content = out.read_bytes()
    clips = json.loads(annotations.read_text(encoding="utf-8"))
    if changed == "description":
        clips[1]["description"] += "!"
    elif changed == "frame":
        frame = data / clips[1]["image"][-1]
        times = (frame.stat().st_atime_ns, frame.stat().st_mtime_ns)
        frame.write_bytes(frame.read_bytes()[:-1] + b"\0")
        os.utime(frame, ns=times)
    else:
        clips[1]["image"].reverse()
    annotations.write_text(json.dumps(clips), encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: clip test-0001 has another description or other frames now"):
        rank_file(ranker, annotations, data, out)
    assert out.read_bytes() == content


def test_a_file_that_a_link_leads_to_keeps_its_own_model(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    data, link = trained_world.data, tmp_path / "latest.jsonl"
    for name in ("jan", "feb"):
        (tmp_path / name).mkdir()
    link.symlink_to(tmp_path / "jan" / "ranked.jsonl")
    rank_file(ranker, data / "test_data.json", data, link)
    assert (tmp_path / "jan" / "ranked.jsonl.run.json").is_file()
    other = LabelRanker.load(trained_world.logs / "pointwise" / "one", device="cpu")
    rank_file(other, data / "test_data.json", data, tmp_path / "feb" / "ranked.jsonl")
    link.unlink()
    link.symlink_to(tmp_path / "feb" / "ranked.jsonl")
    with pytest.raises(UserError, match="was started with another model"):
        rank_file(ranker, data / "test_data.json", data, link)


def test_frames_that_change_while_a_clip_is_ranked_are_refused(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(trained_world.data, tmp_path / "data", ignore=shutil.ignore_patterns("*.h5"))
    real, frame = LabelRanker.score_batch, next((data / "frames" / "test-0000").iterdir())

    def score(*arguments: Any) -> Any:
        scores = real(*arguments)
        frame.write_bytes(frame.read_bytes() + b"x")
        return scores

    monkeypatch.setattr(LabelRanker, "score_batch", score)
    with pytest.raises(UserError, match="clip test-0000: its frames changed while they were read"):
        rank_file(ranker, data / "test_data.json", data, tmp_path / "ranked.jsonl")


def test_lines_of_other_clips_or_a_clip_twice_are_refused(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    data, out = trained_world.data, tmp_path / "ranked.jsonl"
    rank_file(ranker, data / "test_data.json", data, out)
    content = out.read_bytes()
    with pytest.raises(UserError, match=r"line 1: clip 'test-0000' is not in the annotation file; give another --out"):
        rank_file(ranker, data / "val_data.json", data, out)
    assert out.read_bytes() == content
    out.write_bytes(content + content.splitlines(keepends=True)[2])
    with pytest.raises(UserError, match=r"line 7: a second line of clip 'test-0002'; give another --out"):
        rank_file(ranker, data / "test_data.json", data, out)


def test_lines_of_earlier_versions_without_fingerprints_are_kept(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    annotations, out = trained_world.data / "test_data.json", tmp_path / "ranked.jsonl"
    rank_file(ranker, annotations, trained_world.data, out)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    out.write_text("".join(json.dumps({k: row[k] for k in ("id", "labels", "scores")}) + "\n" for row in rows[:4]))
    assert rank_file(ranker, annotations, trained_world.data, out) == (2, 4)


def test_a_file_that_another_process_writes_is_refused(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    out = tmp_path / "ranked.jsonl"
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=r"ranked\.jsonl: another process is writing it"):
            rank_file(ranker, trained_world.data / "test_data.json", trained_world.data, out)
        other.communicate(b"\n")
    assert rank_file(ranker, trained_world.data / "test_data.json", trained_world.data, out) == (6, 0)


def test_missing_frames_are_reported_before_any_clip_is_ranked(
    trained_world: TrainedWorld, ranker: LabelRanker, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="6 faults found; check --frames-root"):
        rank_file(ranker, trained_world.data / "test_data.json", tmp_path / "gone", tmp_path / "ranked.jsonl")
    assert not list(tmp_path.iterdir())


def run_rank(*arguments: str) -> None:
    main(["rank", *arguments, "--device", "cpu"])


@pytest.fixture(scope="module")
def calibrated(trained_world: TrainedWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs folder of runs whose scores have this calibration."""
    return trained_world.calibrated(tmp_path_factory.mktemp("calibrated") / "logs", CALIBRATION)


def probability_of(score: float) -> float:
    """The probability of relevance by `CALIBRATION`."""
    z = (score - 0.5) / 0.4
    logit = -1.5 + 1.0 * -math.log1p(math.exp(-z)) + 3.0 * math.log1p(math.exp(z))
    return 1 / (1 + math.exp(-logit))


def test_scores_of_all_clips_become_probabilities_in_the_same_way(
    trained_world: TrainedWorld, calibrated: Path, tmp_path: Path
) -> None:
    ranker = LabelRanker.load("ppo/one", logs=calibrated, device="cpu")
    assert ranker.before is not None
    for each in (ranker, ranker.before):
        ranked = [label for clip in each.rank_batch(trained_world.queries()) for label in clip]
        wanted = [probability_of(label.score) for label in ranked]
        assert [label.probability for label in ranked] == pytest.approx(wanted)
    annotations, out = trained_world.data / "test_data.json", tmp_path / "ranked.jsonl"
    rank_file(ranker, annotations, trained_world.data, out)
    for line in out.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["probabilities"] == pytest.approx([probability_of(score) for score in row["scores"]])
    # The share of pairs that a label wins depends on the others: a single pair has a winner also if both are relevant.
    by_reward = LabelRanker.load("ppo/one", logs=calibrated, by="reward", device="cpu")
    assert {label.probability for clip in by_reward.rank_batch(trained_world.queries()) for label in clip} == {None}


def test_labels_have_no_probability_where_the_run_has_no_calibration(
    trained_world: TrainedWorld, tmp_path: Path, query: Query
) -> None:
    logs = trained_world.calibrated(tmp_path / "logs", None)
    finished = logs / "ppo" / "one" / "finished.json"
    for content in (read_json(finished), {key: value for key, value in read_json(finished).items() if value}):
        write_json(finished, content)
        ranker = LabelRanker.load("ppo/one", logs=logs, device="cpu")
        assert {label.probability for label in ranker.rank_batch([query])[0]} == {None}
    out = tmp_path / "ranked.jsonl"
    rank_file(ranker, trained_world.data / "test_data.json", trained_world.data, out)
    assert json.loads(out.read_text(encoding="utf-8").splitlines()[0])["probabilities"] is None
    write_json(finished, read_json(finished) | {"calibration": CALIBRATION})
    again = LabelRanker.load("ppo/one", logs=logs, device="cpu")
    with pytest.raises(UserError, match=r"was started with another model: calibration None, now .*give another --out"):
        rank_file(again, trained_world.data / "test_data.json", trained_world.data, out)


@pytest.mark.parametrize("damage", [{"slope_above": -2.0}, {"mean": "0.5"}, {"deviation": 0}])
def test_a_damaged_calibration_is_refused(
    trained_world: TrainedWorld, tmp_path: Path, damage: dict[str, object]
) -> None:
    logs = trained_world.calibrated(tmp_path / "logs", CALIBRATION | damage)
    message = rf"ppo/one: finished.json is damaged \(calibration.{next(iter(damage))}: found .*train the run again"
    with pytest.raises(UserError, match=message):
        LabelRanker.load("ppo/one", logs=logs, device="cpu")


@pytest.mark.parametrize("calibration", [None, CALIBRATION])
def test_the_command_prints_a_table_or_json(
    trained_world: TrainedWorld, capsys: pytest.CaptureFixture[str], tmp_path: Path, calibration: object
) -> None:
    logs = trained_world.calibrated(tmp_path / "logs", calibration)
    frames = trained_world.data / "frames" / "test-0000"
    arguments = ["ppo/one", "--logs", str(logs), "--frames", str(frames), "--labels", "boat, 船, night sky"]
    wanted = LabelRanker.load("ppo/one", logs=logs, device="cpu").rank(frames, ["boat", "船", "night sky"])
    run_rank(*arguments)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["rank", "label", "score"] + ["relevant"] * (calibration is not None)
    for rank, (line, each) in enumerate(zip(lines, wanted, strict=True), start=1):
        assert line.split()[0] == str(rank)
        assert each.label in line
        assert f"{each.score:.4f}" in line
        if each.probability is not None:
            assert f" {each.probability:.0%}".replace("%", " %") in line
            # A full bar, of 24 blocks, is a probability of 1.
            assert line.count("█") == round(24 * each.probability)
    if calibration is None:
        assert [line.split("  ")[-1].strip("█") for line in lines] == [""] * 3
        assert {line.count("█") for line in lines} >= {1, 24}
    # A Chinese character takes two columns.
    ends = {line.index("." if calibration else "█") + line.count("船") for line in lines}
    assert len(ends) == 1
    run_rank(*arguments, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["run"], printed["by"]) == ("ppo/one", "ranker")
    assert printed["ranked"] == [asdict(each) for each in wanted]
    run_rank(*arguments, "--json", "--by", "reward")
    printed = json.loads(capsys.readouterr().out)
    # Of 3 labels, one that wins all its pairs wins 2.
    assert {each["score"] for each in printed["ranked"]} <= {0, 0.25, 0.5, 0.75, 1}


@pytest.mark.parametrize(
    ("probability", "shown"), [(0.0, "0 %"), (0.004, "<1 %"), (0.126, "13 %"), (0.996, ">99 %"), (1.0, "100 %")]
)
def test_a_label_is_not_shown_as_certain_unless_it_is(probability: float, shown: str) -> None:
    assert (
        format_ranking([RankedLabel("boat", 1.0, probability)]).splitlines()[1].split("1.0000")[1].strip(" █") == shown
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "boat"], "found --labels; wanted --frames and --labels"),
        (["--frames", "gone", "--labels", "boat"], "--frames: found no file or folder gone"),
        (["--frames", ".", "--labels", "boat,,car"], "labels: found '' at place 2"),
        (["--annotations", "a.json"], "found --annotations; wanted"),
        (["--frames", ".", "--labels", "boat"], "ppo/none: found no such run under"),
    ],
)
def test_a_mistake_in_the_command_is_reported_at_once(
    trained_world: TrainedWorld,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_rank("ppo/none", "--logs", str(trained_world.logs), *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
