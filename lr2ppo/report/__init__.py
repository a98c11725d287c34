"""The report of runs: one HTML page that holds all that it shows."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr2ppo.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """What the room exports, imported where it is first asked for: matplotlib takes its time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lr2ppo.report import page

    return getattr(page, name)
