"""Feature files name the encoders that made them, and a run saves these names, also when it resumes."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
import torch

from lr2ppo.config.load import load_config
from lr2ppo.data import FeatureStore
from lr2ppo.data.features.encoders import ADDED, FEATURES_FILE, Encoding, read_features_file
from lr2ppo.data.features.writer import StoredType
from lr2ppo.data.frames import read_frames
from lr2ppo.encoders.extractor import EncoderPaths, open_encoders
from lr2ppo.errors import UserError
from lr2ppo.models.weights import load_model
from lr2ppo.stages.evaluate import evaluate
from lr2ppo.training.run import TrainingRun
from tests.helpers.trained_world import MINI, TrainedWorld


@pytest.fixture
def world(trained_world: TrainedWorld, tmp_path: Path) -> TrainedWorld:
    """A copy of the data, so that features may be changed; no runs."""
    shutil.copytree(trained_world.data, tmp_path / "data")
    return TrainedWorld(tmp_path)


def change(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "a") as file:
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value[0]


def encoding_of(*paths: Path) -> Encoding | None:
    return FeatureStore(paths).encoding


def test_a_run_saves_the_encoding_of_its_features(trained_world: TrainedWorld) -> None:
    wanted = encoding_of(trained_world.data / "clean_feat.h5")
    assert wanted is not None
    encoders = trained_world.encoders
    assert (wanted.text_path, wanted.tokenizer_path) == (str(encoders / "roberta"), str(encoders / "roberta"))
    assert (wanted.image_path, wanted.frame_tokens) == (str(encoders / "vit"), "patches")
    assert wanted.max_text_tokens == 40
    for run in ("pointwise/one", "reward/one", "ppo/one"):
        assert read_features_file(trained_world.logs / run) == wanted


@pytest.mark.parametrize("dtype", get_args(StoredType))
def test_a_raw_clip_is_encoded_into_its_stored_features(
    trained_world: TrainedWorld, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "clean_feat.h5"
    trained_world.extract("--dtype", dtype, "--out", str(out))
    store, model = FeatureStore([out]), load_model(trained_world.logs / "pointwise" / "one" / "best")
    encode = open_encoders("run", store.encoding, EncoderPaths(), model.encoder.config, torch.device("cpu"))
    for case, query in zip(trained_world.cases("ppo/one"), trained_world.queries(), strict=True):
        assert query.frames is not None
        pictures = read_frames(query.frames, np.arange)
        encoded = encode(query.labels, query.description, [*pictures, pictures[0]])
        stored, lengths = store.text(case["id"], range(len(encoded.text)))
        spans = store.label_spans(case["id"], np.arange(len(encoded.text)), lengths)
        assert encoded.label_span.tolist() == spans.tolist()
        of_frames = store.frames(case["id"])
        largest = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
        for row, wanted, length in zip(encoded.text, stored, lengths, strict=True):
            np.testing.assert_allclose(row, wanted[:length], atol=largest, rtol=largest)
            assert torch.equal(row, row.to(getattr(torch, dtype)).float())
        wanted_frames = np.concatenate([of_frames, of_frames[:1]]).reshape(-1, store.image_width)
        np.testing.assert_allclose(encoded.frames, wanted_frames, atol=largest, rtol=largest)


def test_a_runs_encoding_is_read_with_a_byte_order_mark_and_not_from_a_pipe(
    trained_world: TrainedWorld, tmp_path: Path
) -> None:
    assert read_features_file(tmp_path) is None
    content = (trained_world.logs / "pointwise" / "one" / FEATURES_FILE).read_bytes()
    (tmp_path / FEATURES_FILE).write_bytes(b"\xef\xbb\xbf" + content)
    assert read_features_file(tmp_path) == encoding_of(trained_world.data / "clean_feat.h5")
    (tmp_path / FEATURES_FILE).unlink()
    os.mkfifo(tmp_path / FEATURES_FILE)
    with pytest.raises(UserError, match=r"features\.json: .*is a named pipe, wanted a regular file"):
        read_features_file(tmp_path)


def test_files_without_all_fixed_length_attributes_name_no_encoders(world: TrainedWorld) -> None:
    path = world.data / "clean_feat.h5"
    change(path, image_encoder=["vit@1"])
    assert encoding_of(path) is None
    change(path, image_encoder="vit@1")
    assert encoding_of(path) is not None
    change(path, frame_tokens="words")
    assert encoding_of(path) is None
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            del file.attrs[name]
        file.attrs["tokens_per_frame"] = 16
    assert encoding_of(path) is None
    world.train("pointwise", "unnamed")
    assert json.loads((world.logs / "pointwise" / "unnamed" / FEATURES_FILE).read_text())["encoders"] is None


def test_shards_of_different_encoders_are_refused_but_paths_may_differ(world: TrainedWorld, tmp_path: Path) -> None:
    first, second = world.data / "clean_feat.h5", tmp_path / "second.h5"
    shutil.copy(first, second)
    with h5py.File(second, "a") as file:
        for name in list(file):
            file.move(name, f"second-{name}")
    encoding = encoding_of(first)
    assert encoding is not None
    change(second, image_path="elsewhere/eyes", image_encoder=encoding.image_encoder.replace("vit@", "eyes@"))
    assert encoding_of(first, second) == encoding
    change(second, image_encoder="vit@0123456789ab")
    with pytest.raises(
        UserError, match=r"second\.h5: found .*image_encoder vit@0123456789ab, wanted vit@.*same encoders"
    ):
        encoding_of(first, second)
    change(second, image_encoder=["of any length"])
    assert encoding_of(first, second) is None


def test_an_extraction_resumes_with_the_same_encoders_at_another_path(
    world: TrainedWorld, trained_world: TrainedWorld
) -> None:
    shutil.copytree(trained_world.encoders, world.encoders)
    path = world.data / "clean_feat.h5"
    with h5py.File(path, "a") as file:
        del file["test-0000"]
    world.extract()
    encoding = encoding_of(path)
    assert encoding is not None
    assert encoding.image_path == str(world.encoders / "vit")
    with h5py.File(path) as file:
        assert "test-0000" in file


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("field", "file", "change"),
    [
        ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["model"]["merges"].pop()),
        ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(mean=[0.9, 0.1, 0.1])),
        ("text_settings", "roberta/config.json", lambda config: config.update(num_attention_heads=1)),
        ("max_text_tokens", "roberta/config.json", None),
    ],
)
def test_an_extraction_is_not_continued_with_other_settings(
    world: TrainedWorld,
    trained_world: TrainedWorld,
    capsys: Any,
    field: str,
    file: str,
    change: Callable[[Any], object] | None,
) -> None:
    shutil.copytree(trained_world.encoders, world.encoders)
    path = world.data / "clean_feat.h5"
    if change is None:
        with h5py.File(path, "a") as stored:
            stored.attrs[field] = 30
    else:
        change_json(world.encoders / file, change)
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        world.extract()
    refusal = f"holds features made with {field} .*, now asked for {field} .*--out"
    assert re.search(refusal, capsys.readouterr().err)
    assert path.read_bytes() == before


def test_a_file_of_an_earlier_version_is_continued_and_names_no_more_than_before(
    world: TrainedWorld, trained_world: TrainedWorld
) -> None:
    shutil.copytree(trained_world.encoders, world.encoders)
    (world.encoders / "vit").rename(world.encoders / "eyes")
    path = world.data / "clean_feat.h5"
    with h5py.File(path, "a") as file:
        del file["test-0000"]
        for name in ADDED:
            del file.attrs[name]
    before = encoding_of(path)
    assert before is not None
    world.extract("--image", str(world.encoders / "eyes"))
    found = encoding_of(path)
    assert found is not None
    assert found.facts() == before.facts()
    assert found.image_path == str(world.encoders / "eyes")


@pytest.fixture
def others(world: TrainedWorld, trained_world: TrainedWorld) -> TrainedWorld:
    """The runs, with features that are named as of another encoder."""
    shutil.copytree(trained_world.logs, world.logs)
    change(world.data / "clean_feat.h5", image_encoder="vit@0123456789ab")
    return world


def evaluation(world: TrainedWorld, run: str) -> None:
    place = [f"logs={world.logs}", f"root={world.data}"]
    evaluate(load_config(MINI / "evaluate.yaml", "evaluate", [f"name={run}", *place, "device=cpu", "workers=0"]))


OTHERS = (
    r"trained on features of other encoders than .*clean_feat\.h5: found image_encoder vit@0123456789ab, wanted vit@"
)


@pytest.mark.parametrize("run", ["pointwise/one", "ppo/one"])
def test_a_run_is_not_evaluated_on_features_of_other_encoders(others: TrainedWorld, run: str) -> None:
    with pytest.raises(UserError, match=rf"{run}: was {OTHERS}"):
        evaluation(others, run)


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_a_run_does_not_start_from_one_of_other_encoders(others: TrainedWorld, stage: str) -> None:
    sources = ["ranker=pointwise/one"] + ["reward=one"] * (stage == "ppo")
    with pytest.raises(UserError, match=rf"pointwise/one: was {OTHERS}"):
        others.train(stage, "mixed", *sources)
    assert not (others.logs / stage / "mixed").exists()


def test_two_source_runs_of_other_encoders_are_refused_even_if_the_features_name_none(others: TrainedWorld) -> None:
    change(others.data / "clean_feat.h5", image_encoder=["of any length"])
    change_json(
        others.logs / "reward" / "one" / FEATURES_FILE, lambda facts: facts["encoders"].update(text_encoder="b@1")
    )
    with pytest.raises(UserError, match=r"reward/one: was trained on features of other encoders than .*pointwise/one"):
        others.train("ppo", "mixed", "ranker=pointwise/one", "reward=one")


def test_features_that_name_no_encoders_give_a_warning(others: TrainedWorld, capsys: Any) -> None:
    change(others.data / "clean_feat.h5", image_encoder=["of any length"])
    evaluation(others, "pointwise/one")
    assert (
        "clean_feat.h5: the features name no encoders; cannot check that they are the same" in capsys.readouterr().out
    )
    for run in ("pointwise/one", "ppo/one"):
        change_json(others.logs / run / FEATURES_FILE, lambda facts: facts.update(encoders=None))
    evaluation(others, "pointwise/one")
    assert "warning" not in capsys.readouterr().out


def test_a_run_resumes_only_with_features_of_the_same_encoders(
    world: TrainedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    checkpoint = TrainingRun.save_checkpoint

    def stop(self: TrainingRun[Any], *arguments: Any) -> None:
        checkpoint(self, *arguments)
        raise StoppedError

    more = ["safety.checkpoint_steps=1", "train.epochs=2"]
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save_checkpoint", stop)
        with pytest.raises(StoppedError):
            world.train("pointwise", "stopped", *more)
    path, folder = world.data / "clean_feat.h5", world.logs / "pointwise" / "stopped"
    name = read_features_file(folder)
    assert name is not None
    change(path, image_encoder="vit@0123456789ab")
    with pytest.raises(UserError, match=r"(?s)--fresh.*made with image_encoder vit@0123456789ab, wanted vit@"):
        world.train("pointwise", "stopped", *more)
    change(path, image_encoder=name.image_encoder, image_path="moved/vit")
    world.train("pointwise", "stopped", *more)
    assert (folder / "finished.json").is_file()
    found = read_features_file(folder)
    assert found == name.model_copy(update={"image_path": "moved/vit"})
