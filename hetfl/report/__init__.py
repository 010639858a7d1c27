"""Comparison of finished runs: tables, plots and a report, in HTML and Markdown."""

from hetfl.report.groups import group_runs
from hetfl.report.terminal import answer_lines
from hetfl.report.verdict import verdict
from hetfl.report.writing import read_material, write_material, write_report

__all__ = ["answer_lines", "group_runs", "read_material", "verdict", "write_material", "write_report"]
