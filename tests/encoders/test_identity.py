"""What features are named by is all that decides them: encoders of the same tensors may give others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lr2ppo.data import FeatureStore, FeatureWriter
from lr2ppo.data.features.encoders import ADDED, Encoding, encoding_differences, write_features_file
from lr2ppo.encoders import ImageEncoder, TextEncoder, pretrain
from lr2ppo.encoders.extractor import describe_encoding
from lr2ppo.errors import UserError
from lr2ppo.training.inputs import check_encoders


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained encoders, as pretraining saves them."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    tokenizer = pretrain.build_tokenizer(["a boat in the sea", "the sea and the boats"] * 5, 300)
    text = pretrain.build_text_model(len(tokenizer), width=16, layers=1, heads=2, max_tokens=40)
    pretrain.save(root, text, tokenizer, *pretrain.build_image_model(width=16, layers=1, heads=2, size=16, patch=8))
    return root


def describe(root: Path) -> Encoding:
    text, image = TextEncoder.load(root / "roberta"), ImageEncoder.load(root / "vit")
    return describe_encoding(text, root / "roberta", image, root / "vit", "float32")


Change = Callable[[dict[str, Any]], object]
CHANGES: list[tuple[str, str, Change]] = [
    ("text_settings", "roberta/config.json", lambda config: config.update(num_attention_heads=1)),
    ("text_settings", "roberta/config.json", lambda config: config.update(hidden_act="relu")),
    ("text_settings", "roberta/config.json", lambda config: config.update(layer_norm_eps=1e-2)),
    ("image_settings", "vit/config.json", lambda config: config["model_args"].update(num_heads=1)),
    ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(mean=[0.9, 0.5, 0.5])),
    ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(std=[0.5, 0.5, 0.1])),
    ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(interpolation="bilinear")),
    ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(crop_pct=0.5)),
    ("image_settings", "vit/config.json", lambda config: config["pretrained_cfg"].update(crop_mode="squash")),
    ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["model"]["merges"].pop()),
    ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["model"]["merges"].reverse()),
    ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["pre_tokenizer"].update(add_prefix_space=False)),
    ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["pre_tokenizer"].update(use_regex=False)),
    ("tokenizer_parts", "roberta/tokenizer.json", lambda whole: whole["added_tokens"][4].update(lstrip=True)),
]


@pytest.mark.parametrize(("field", "file", "change"), CHANGES)
def test_the_same_tensors_with_other_settings_are_another_encoder(
    encoders: Path, tmp_path: Path, field: str, file: str, change: Change
) -> None:
    shutil.copytree(encoders, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / file).read_text())
    change(content)
    (tmp_path / file).write_text(json.dumps(content))
    (difference,) = encoding_differences(describe(tmp_path), describe(encoders))
    assert difference.startswith(f"{field} ")


def test_the_same_encoders_in_other_files_are_the_same(encoders: Path, tmp_path: Path) -> None:
    """A merge may be stored as a text, a number with or without a point, and a config without what is the default."""
    shutil.copytree(encoders, tmp_path, dirs_exist_ok=True)
    (tmp_path / "roberta" / "tokenizer_config.json").unlink()
    tokenizer, vit = tmp_path / "roberta" / "tokenizer.json", tmp_path / "vit" / "config.json"
    whole, config = json.loads(tokenizer.read_text()), json.loads(vit.read_text())
    whole["model"]["merges"] = [" ".join(merge) for merge in whole["model"]["merges"]]
    del whole["decoder"], whole["post_processor"], whole["model"]["type"], whole["pre_tokenizer"]["use_regex"]
    config["pretrained_cfg"]["crop_pct"] = 1
    tokenizer.write_text(json.dumps(whole))
    vit.write_text(json.dumps(config))
    assert encoding_differences(describe(tmp_path), describe(encoders)) == []


def test_two_sources_are_compared_even_if_the_features_name_less(encoders: Path, tmp_path: Path) -> None:
    now = describe(encoders)
    other = now.model_copy(update={"text_settings": f"{now.text_settings} and more"})
    for name, encoding in (("ranker", now), ("reward", other)):
        (tmp_path / name).mkdir()
        write_features_file(tmp_path / name, encoding, [])
    write_features(tmp_path / "clean_feat.h5", now.model_copy(update=dict.fromkeys(ADDED)))
    store = FeatureStore([tmp_path / "clean_feat.h5"])
    assert check_encoders([tmp_path / "ranker"], store) == check_encoders([tmp_path / "reward"], store) == ""
    with pytest.raises(UserError, match=r"reward: was trained on features of other encoders than .*ranker"):
        check_encoders([tmp_path / "ranker", tmp_path / "reward"], store)


def write_features(path: Path, encoding: Encoding) -> None:
    with FeatureWriter(path, {"tokens_per_frame": 1}) as store:
        store.write("a", [np.zeros((2, 16), dtype=np.float32)], np.zeros((1, 16), dtype=np.float32))
    with h5py.File(path, "a") as file:
        for name, value in encoding.model_dump(exclude_none=True).items():
            file.attrs[name] = np.bytes_(str(value)) if isinstance(value, str) else value


def test_what_earlier_versions_did_not_name_is_not_compared(encoders: Path) -> None:
    now = describe(encoders)
    before = Encoding.model_validate(now.model_dump(exclude=set(ADDED)))
    assert encoding_differences(now, before) == encoding_differences(before, now) == []
    assert before.fingerprints().keys() == now.fingerprints().keys() - {*ADDED}
