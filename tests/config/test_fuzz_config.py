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
from tests.conftest import REPOSITORY
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated

PLACES = {stage: f"mini/{stage}.yaml" for stage in CONFIGS} | {"compare": "compare/main.yaml"}
TEXTS = {stage: (REPOSITORY / "configs" / place).read_text(encoding="utf-8") for stage, place in PLACES.items()}
stages = st.sampled_from(list(CONFIGS))
# Of all possible values, only few mean something special to YAML and the schema.
snippets = st.sampled_from(
    ["2001-99-99", "!!int x", "!!bool x", "!!timestamp x", "0x", "0b_", "&a [*a]", "[" * 400, "1:" * 400 + "1.5",
     ".inf", "-.nan", '"\\0"', '"\\uD800"', "!!binary x", "? [1]", "*b", "{1: 2}", "data: 3", "- 1", "1" * 5000]
)  # fmt: skip


def read_or_refuse(path: Path, stage: str, *overrides: str) -> None:
    # A message about an override names the override.
    with may_refuse(path, *overrides, *map(repr, overrides)):
        config = load_config(path, stage, overrides)
        assert_finite(config)
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path, stage) == config


def assert_finite(config: Section) -> None:
    for _, value in config:
        if isinstance(value, Section):
            assert_finite(value)
        assert not isinstance(value, float) or math.isfinite(value)


def any_tree(folder: Path, _: Path, data: st.DataObject) -> None:
    stage = data.draw(stages)
    tree: Any = data.draw(mutated(yaml.safe_load(TEXTS[stage])))
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    read_or_refuse(folder / "config.yaml", stage)


def any_bytes(folder: Path, _: Path, data: st.DataObject) -> None:
    stage = data.draw(stages)
    content = data.draw(damaged(TEXTS[stage].encode()) | st.binary(max_size=40))
    (folder / "config.yaml").write_bytes(content)
    read_or_refuse(folder / "config.yaml", stage)


def odd_line(folder: Path, _: Path, data: st.DataObject) -> None:
    stage, snippet = data.draw(stages), data.draw(snippets)
    lines = TEXTS[stage].splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    key = lines[place].partition(":")[0]
    lines[place] = data.draw(st.sampled_from([f"{key}: {snippet}", snippet]))
    (folder / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    read_or_refuse(folder / "config.yaml", stage)


def any_override(folder: Path, _: Path, data: st.DataObject) -> None:
    stage = data.draw(stages)
    keys = st.sampled_from(["seed", "data.root", "data.features", "train.epochs", "model", "name", "logs"]) | st.text()
    override = data.draw(keys) + data.draw(st.sampled_from("=.")) + data.draw(snippets | st.text(max_size=8))
    (folder / "config.yaml").write_text(TEXTS[stage], encoding="utf-8")
    (folder / "override.txt").write_text(repr(override), encoding="utf-8")
    read_or_refuse(folder / "config.yaml", stage, override)


CASES: dict[str, Case] = {
    "config trees": any_tree,
    "config bytes": any_bytes,
    "config lines": odd_line,
    "config overrides": any_override,
}


@pytest.mark.slow
@fuzzed(300)
@given(data=st.data())
def test_trees_of_any_content(tmp_path: Path, data: st.DataObject) -> None:
    any_tree(tmp_path, tmp_path, data)


@fuzzed(200)
@given(data=st.data())
def test_files_of_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    any_bytes(tmp_path, tmp_path, data)


@fuzzed(150)
@given(data=st.data())
def test_lines_that_yaml_takes_for_something_else(tmp_path: Path, data: st.DataObject) -> None:
    odd_line(tmp_path, tmp_path, data)


@fuzzed(150)
@given(data=st.data())
def test_overrides_of_any_text(tmp_path: Path, data: st.DataObject) -> None:
    any_override(tmp_path, tmp_path, data)
