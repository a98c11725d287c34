"""What the documentation names is there."""

import importlib
import re

import pytest

from tests.conftest import REPOSITORY

METHOD = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "docs/method.md", "docs/own_data.md", "pretrained_models/README.md"]
NAMED = re.findall(r"`([\w/]+)\.py: (\w+)(?:\.(\w+))?`", METHOD)


@pytest.mark.parametrize(("module", "name", "attribute"), NAMED, ids=lambda part: part or None)
def test_each_function_that_the_method_names_is_there(module: str, name: str, attribute: str) -> None:
    found = getattr(importlib.import_module(f"lr2ppo.{module.replace('/', '.')}"), name)
    assert not attribute or hasattr(found, attribute)


def test_the_method_names_the_models_the_losses_and_the_stages() -> None:
    modules = {module for module, _, _ in NAMED}
    assert {"objectives", "models/ranker", "models/partial_order", "stages/ppo", "metrics"} <= modules


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for target in targets:
        assert ((REPOSITORY / page).parent / target).exists(), target
    for path in re.findall(r"`((?:scripts|tests|configs|docs|lr2ppo)/[\w/.]+)`", text):
        assert (REPOSITORY / path).exists(), path
