"""Runs to tables and plots: what a run folder holds, read back."""

from hetfl.analysis.plots import plot_accuracy_over_bytes, plot_accuracy_over_rounds, plot_run
from hetfl.analysis.runs import Run, load_run

__all__ = ["Run", "load_run", "plot_accuracy_over_bytes", "plot_accuracy_over_rounds", "plot_run"]
