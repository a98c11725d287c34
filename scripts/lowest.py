"""Print the lowest version of each package that requirements.txt and the extras name, as pip's constraints."""

import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def stated(repository: Path = REPOSITORY) -> list[str]:
    """What a run and the extras need, such as `torch>=2.6`; not the tools of development."""
    lines = (repository / "requirements.txt").read_text(encoding="utf-8").splitlines()
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = [line for line in lines if line and not line.startswith("#")]
    return packages + [package for name in sorted(extras.keys() - {"dev"}) for package in extras[name]]


if __name__ == "__main__":
    print(*(package.replace(">=", "==") for package in stated()), sep="\n")
