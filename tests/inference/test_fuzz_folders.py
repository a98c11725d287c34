"""Broken encoders and exported folders, as others may share them, are refused with one message, or rank labels."""

import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lr2ppo.files import read_json
from lr2ppo.inference.export import export
from lr2ppo.inference.ranker import LabelRanker
from lr2ppo.inference.trained import open_trained
from tests.conftest import write_tiny_world
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated
from tests.helpers.untrained_world import make_untrained_world

ENCODER_FILES = (
    *("roberta/config.json", "roberta/model.safetensors", "roberta/tokenizer.json", "roberta/tokenizer_config.json"),
    *("vit/config.json", "vit/model.safetensors"),
)


def write_valid(root: Path) -> None:
    """Write `encoders/` and an exported model, `exported/`, that names them."""
    write_tiny_world(root / "data")
    make_untrained_world(root, root / "data")
    export(open_trained("ppo/one", root / "logs"), root / "exported")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("valid")
    write_valid(root)
    return root


def damage(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        content = json.dumps(data.draw(mutated(read_json(path)))).encode()
    else:
        content = data.draw(damaged(content))
    path.write_bytes(content)


def rank(exported: Path, encoders: Path) -> None:
    with may_refuse(exported, encoders):
        ranker = LabelRanker.load(
            exported, text=encoders / "roberta", tokenizer=encoders / "roberta", image=encoders / "vit", device="cpu"
        )
        ranked = ranker.rank(Image.new("RGB", (20, 16)), ["car", "sky"], "a day")
        assert sorted(each.label for each in ranked) == ["car", "sky"]
        assert all(math.isfinite(each.score) for each in ranked)


def any_encoder(folder: Path, valid: Path, data: st.DataObject) -> None:
    shutil.rmtree(folder / "encoders", ignore_errors=True)
    shutil.copytree(valid / "encoders", folder / "encoders")
    name = data.draw(st.sampled_from([name for name in ENCODER_FILES if (valid / "encoders" / name).is_file()]))
    damage(folder / "encoders" / name, data)
    rank(valid / "exported", folder / "encoders")


def any_export(folder: Path, valid: Path, data: st.DataObject) -> None:
    shutil.rmtree(folder / "exported", ignore_errors=True)
    shutil.copytree(valid / "exported", folder / "exported")
    files = sorted(path for path in (folder / "exported").rglob("*") if path.suffix in (".json", ".safetensors"))
    damage(data.draw(st.sampled_from(files)), data)
    rank(folder / "exported", valid / "encoders")


CASES: dict[str, Case] = {"encoder folders": any_encoder, "exported folders": any_export}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_folders_of_any_content(tmp_path: Path, valid: Path, case: Case) -> None:
    @fuzzed(100)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case(tmp_path, valid, data)

    check()
