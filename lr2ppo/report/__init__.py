"""The report of runs: one self-contained HTML page."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr2ppo.report.page import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: matplotlib is slow to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lr2ppo.report import page

    return getattr(page, name)
