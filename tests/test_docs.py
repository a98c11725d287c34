"""What the documentation names exists."""

import importlib
import re
import shlex

import pytest

from lr2ppo.cli import COMMANDS, open_command
from tests.conftest import REPOSITORY

METHOD = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("*/*.md")]
NAMED = re.findall(r"`([\w/]+)\.py: (\w+)(?:\.(\w+))?`", METHOD)


@pytest.mark.parametrize(("module", "name", "attribute"), NAMED, ids=lambda part: part or None)
def test_each_function_that_the_method_names_exists(module: str, name: str, attribute: str) -> None:
    found = getattr(importlib.import_module(f"lr2ppo.{module.replace('/', '.')}"), name)
    assert not attribute or hasattr(found, attribute)


def test_the_method_names_the_models_the_losses_and_the_stages() -> None:
    modules = {module for module, _, _ in NAMED}
    assert {"losses/policy", "models/rankers", "stages/ppo", "evaluation/metrics"} <= modules


@pytest.mark.parametrize("page", [str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_links_lead_to_files(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    for target in targets:
        assert ((REPOSITORY / page).parent / target).exists(), target
    for path in re.findall(r"`((?:scripts|tests|configs|docs|lr2ppo)/[\w/.]+)`", text):
        assert (REPOSITORY / path).exists(), path


COMMAND = re.compile(r"^    lr2ppo ((?:[^\n\\]|\\\n)+)", re.MULTILINE)
COMMAND_LINES = [line for page in PAGES for line in COMMAND.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_each_command_line_is_one_that_the_command_takes(line: str) -> None:
    # Brackets mark options; a comment may follow.
    name, *words = shlex.split(line.translate(str.maketrans("", "", "[]\\\n")), comments=True)
    _, parser = open_command(name)
    parser.read(words)


def test_the_documentation_has_an_example_of_most_commands() -> None:
    assert len({line.split()[0] for line in COMMAND_LINES}) > len(COMMANDS) / 2


@pytest.mark.parametrize("page", [str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_no_page_names_a_missing_command(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:^    |`)lr2ppo ([a-z][a-z-]*)", text, re.MULTILINE)
    assert set(named) <= set(COMMANDS)
    assert "python -m lr2ppo." not in text
