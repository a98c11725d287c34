"""The report of runs: one HTML page that holds all that it shows."""

from lr2ppo.report.page import write_report

__all__ = ["write_report"]
