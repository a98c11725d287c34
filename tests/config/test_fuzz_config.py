"""Broken config files and overrides are refused with one message, or give a config that can be dumped and loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.config.schema import CONFIGS, Section
from lr2ppo.errors import UserError
from tests.conftest import REPOSITORY
from tests.helpers.fuzz import damaged, fuzzed, mutated

TEXTS = {stage: (REPOSITORY / "configs" / "mini" / f"{stage}.yaml").read_text(encoding="utf-8") for stage in CONFIGS}
stages = st.sampled_from(list(CONFIGS))
# Of all possible values, only few mean something special to YAML and the schema.
snippets = st.sampled_from(
    ["2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "0x", "0b_", "&a [*a]", "[" * 400, "1:" * 400 + "1.5",
     ".inf", "-.nan", '"\\0"', '"\\uD800"', "!!binary x", "? [1]", "*b", "{1: 2}", "data: 3", "- 1", "1" * 5000]
)  # fmt: skip


def read_or_refuse(path: Path, stage: str, *overrides: str) -> None:
    try:
        config = load_config(path, stage, overrides)
    except UserError:
        return
    assert_finite(config)
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path, stage) == config


def assert_finite(config: Section) -> None:
    for _, value in config:
        if isinstance(value, Section):
            assert_finite(value)
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.slow
@fuzzed(300)
@given(data=st.data(), stage=stages)
def test_trees_of_any_content(tmp_path: Path, data: st.DataObject, stage: str) -> None:
    tree: Any = data.draw(mutated(yaml.safe_load(TEXTS[stage])))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    read_or_refuse(tmp_path / "config.yaml", stage)


@fuzzed(200)
@given(data=st.data(), stage=stages)
def test_files_of_any_bytes(tmp_path: Path, data: st.DataObject, stage: str) -> None:
    content = data.draw(damaged(TEXTS[stage].encode()) | st.binary(max_size=40))
    (tmp_path / "config.yaml").write_bytes(content)
    read_or_refuse(tmp_path / "config.yaml", stage)


@fuzzed(150)
@given(data=st.data(), stage=stages, snippet=snippets)
def test_lines_that_yaml_takes_for_something_else(
    tmp_path: Path, data: st.DataObject, stage: str, snippet: str
) -> None:
    lines = TEXTS[stage].splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    key = lines[place].partition(":")[0]
    lines[place] = data.draw(st.sampled_from([f"{key}: {snippet}", snippet]))
    (tmp_path / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    read_or_refuse(tmp_path / "config.yaml", stage)


@fuzzed(150)
@given(
    data=st.data(),
    stage=stages,
    value=snippets | st.text(max_size=8),
    key=st.sampled_from(["seed", "data.root", "data.features", "train.epochs", "model", "name", "logs"]) | st.text(),
)
def test_overrides_of_any_text(tmp_path: Path, data: st.DataObject, stage: str, value: str, key: str) -> None:
    (tmp_path / "config.yaml").write_text(TEXTS[stage], encoding="utf-8")
    read_or_refuse(tmp_path / "config.yaml", stage, f"{key}{data.draw(st.sampled_from('=.'))}{value}")
