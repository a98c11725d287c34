"""What is said of versions agrees: the bounds, the newest tested, and the lowest of `scripts/test.sh --lowest`."""

import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from lr2ppo.inference.onnx import PACKAGES
from tests.conftest import REPOSITORY


def read_lines(name: str) -> list[str]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def read_extras() -> dict[str, list[str]]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    return extras


def versions(lines: list[str], operator: str) -> dict[str, str]:
    """The one version of each package, all given with the same operator."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        ((found[requirement.name], given),) = ((each.version, each.operator) for each in requirement.specifier)
        assert given == operator, line
    return found


def test_the_newest_tested_version_of_each_package_is_one_that_we_say_we_run_with() -> None:
    stated = [*read_lines("requirements.txt"), *(package for extra in read_extras().values() for package in extra)]
    tested = versions(read_lines("constraints.txt"), "==")
    requirements = [Requirement(line) for line in stated if not line.startswith("lr2ppo[")]
    assert {each.name for each in requirements} == tested.keys()
    for requirement in requirements:
        assert requirement.specifier.contains(tested[requirement.name]), requirement


def test_the_lowest_environment_has_the_bounds_of_all_that_a_run_and_the_extras_need() -> None:
    extras = read_extras()
    stated = [*read_lines("requirements.txt"), *extras["video"], *extras["demo"], *extras["onnx"]]
    printed = subprocess.run([sys.executable, "scripts/lowest.py"], cwd=REPOSITORY, capture_output=True, text=True)
    assert versions(printed.stdout.splitlines(), "==") == versions(stated, ">=")


def test_an_onnx_export_wants_the_packages_that_the_extra_installs() -> None:
    assert versions(read_extras()["onnx"], ">=") == PACKAGES
