"""Comparison of finished runs: tables, plots and a report, in HTML and Markdown."""

from hetfl.report.groups import group_runs
from hetfl.report.writing import write_report

__all__ = ["group_runs", "write_report"]
