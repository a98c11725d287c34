"""Broken weights and model descriptions are refused, or give a model of the described shape."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import build_model, load_model, model_shapes, save_model
from lr2ppo.tensors import read_tensors, write_tensors
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated

SHAPE = ModelConfig(head="pooled", attention="scaled", width=4, heads=2, dropout=0.1, text_width=3, image_width=5)
KINDS: dict[str, type[RelevanceRanker] | type[PartialOrderModel]] = {
    "ranker": RelevanceRanker,
    "reward": PartialOrderModel,
}
names = st.sampled_from(list(KINDS))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `best/` folder for each kind of model, with its weights also saved by torch."""
    root = tmp_path_factory.mktemp("runs")
    write_valid(root)
    return root


def write_valid(root: Path) -> None:
    for name, kind in KINDS.items():
        model = kind(SHAPE)
        save_model(root / name, model)
        write_tensors(root / name / "model.bin", model.state_dict())


def assert_whole(model: RelevanceRanker | PartialOrderModel) -> None:
    shapes = model_shapes(type(model), model.encoder.config)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_shape_that_no_model_can_have_is_refused(tmp_path: Path, runs: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((runs / "ranker" / name).read_bytes())
    description = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    description["shape"]["width"] = 2**40
    (tmp_path / "config.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(UserError, match="no model can have this shape"):
        load_model(tmp_path)


def any_description(folder: Path, valid: Path, data: st.DataObject) -> None:
    name = data.draw(names)
    (folder / "model.safetensors").write_bytes((valid / name / "model.safetensors").read_bytes())
    description = json.loads((valid / name / "config.json").read_text(encoding="utf-8"))
    mutant: Any = data.draw(mutated(description))
    content = data.draw(st.just(json.dumps(mutant).encode()) | damaged(json.dumps(description).encode()))
    (folder / "config.json").write_bytes(content)
    with may_refuse(folder):
        assert_whole(load_model(folder))


def any_safetensors(folder: Path, valid: Path, data: st.DataObject) -> None:
    name = data.draw(names)
    (folder / "config.json").write_bytes((valid / name / "config.json").read_bytes())
    content = (valid / name / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    head, numbers = content[:header], content[header:]
    changed = data.draw(damaged(head).map(lambda part: part + numbers) | damaged(numbers).map(lambda part: head + part))
    (folder / "model.safetensors").write_bytes(changed)
    with may_refuse(folder):
        assert_whole(load_model(folder))


def any_torch_file(folder: Path, valid: Path, data: st.DataObject) -> None:
    name = data.draw(names)
    path = folder / "model.bin"
    path.write_bytes(data.draw(damaged((valid / name / "model.bin").read_bytes())))
    with may_refuse(path):
        assert_whole(build_model(KINDS[name], SHAPE, read_tensors(path), path))


CASES: dict[str, Case] = {
    "model descriptions": any_description,
    "safetensors files": any_safetensors,
    "files of torch": any_torch_file,
}


@pytest.mark.slow
@fuzzed(300)
@given(data=st.data())
def test_descriptions_of_any_content(tmp_path: Path, runs: Path, data: st.DataObject) -> None:
    any_description(tmp_path, runs, data)


@pytest.mark.slow
@fuzzed(300)
@given(data=st.data())
def test_safetensors_of_any_bytes(tmp_path: Path, runs: Path, data: st.DataObject) -> None:
    any_safetensors(tmp_path, runs, data)


@pytest.mark.slow
@fuzzed(300)
@given(data=st.data())
def test_files_of_torch_of_any_bytes(tmp_path: Path, runs: Path, data: st.DataObject) -> None:
    any_torch_file(tmp_path, runs, data)
