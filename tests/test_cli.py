"""The command line: its table of commands, its help and its error messages."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from lr2ppo.cli import COMMANDS, main
from tests.conftest import REPOSITORY
from tests.helpers.quick import answered_at_once

# The required arguments of each command.
REQUIRED = {
    "compare": "main",
    "train": "ppo",
    "pipeline": "x --preset=y",
    "benchmark": "ppo",
    "rank": "x",
    "report": "x",
    "demo": "x",
    "check": "x",
    "mini": "x",
    "compare-published": "x",
    "export": "x y",
    "published": "x y",
    "convert": "x --out=y",
    "pretrain": "--data=x --out=y",
    "extract": "--data=x --text=y --image=z",
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The single error message of a refused command line."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    return message.removeprefix("error: ")


def test_the_installed_command_is_this_one() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["scripts"]["lr2ppo"].split(":")
    assert getattr(import_module(module), name) is main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_has_a_line_for_each_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[:1] and line[0] in COMMANDS and len(line) > 2] == list(COMMANDS)
    assert ["example:", "lr2ppo"] in [line[:2] for line in lines]


def test_python_runs_the_package_as_the_command() -> None:
    run = [sys.executable, "-m", "lr2ppo", "--version"]
    version = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert version.strip() == import_module("lr2ppo.version").__version__


@pytest.mark.slow
def test_the_processes_of_a_command_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name in ("yaml", "numpy", "runpy", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nraise ImportError\n", encoding="utf-8")
    # As the installed command, which does not search the current folder either.
    command = [sys.executable, "-P", "-c", "from lr2ppo.cli import main; main()", "train", "pointwise"]
    command += ["--config", str(REPOSITORY / "configs" / "mini" / "pointwise.yaml"), "name=x", "data.root=gone"]
    environment = os.environ | {"NPROC": "2", "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, ran.exists()) == (2, False), done.stderr
    assert "gone/clean_feat.h5: no such feature file" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_needs_no_large_library_for_it(name: str) -> None:
    printed, _ = answered_at_once(0, name, "--help")
    assert f"usage: lr2ppo {name} " in printed
    assert f"\nexample: lr2ppo {name} " in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_a_misspelt_option_at_once(name: str) -> None:
    _, errors = answered_at_once(2, name, *REQUIRED.get(name, "").split(), "--hepl")
    assert errors == f"\nerror: found '--hepl', wanted an argument from lr2ppo {name} --help; did you mean --help?\n"


@pytest.mark.parametrize(("word", "meant"), [("rnak", "rank"), ("Evaluate", "evaluate"), ("exctract", "extract")])
def test_a_misspelt_command_is_answered_with_the_nearest(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = f"found '{word}', wanted a command from lr2ppo --help; did you mean {meant}?"
    assert refused(capsys, word) == wanted


def test_a_command_that_is_like_no_other_is_refused_without_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "zzz") == "found 'zzz', wanted a command from lr2ppo --help"


def test_a_value_of_the_wrong_type_and_a_missing_argument_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "demo", "ppo/x", "--port", "x") == (
        "argument --port: invalid int value: 'x'; lr2ppo demo --help shows its arguments"
    )
    assert refused(capsys, "rank") == (
        "the following arguments are required: RUN; lr2ppo rank --help shows its arguments"
    )


def test_options_and_other_arguments_may_be_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs" / "mini" / "ppo.yaml")
    main(["train", "ppo", "name=x", "--config", config, "seed=3", "--print-config", "train.epochs=5"])
    printed = capsys.readouterr().out
    assert "seed: 3" in printed
    assert "epochs: 5" in printed
