"""Runs to tables and plots: what a run folder holds, read back; and snapshots, kept while a run goes on."""

from hetfl.analysis.plots import plot_accuracy_over_bytes, plot_accuracy_over_rounds, plot_run
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.snapshot_reader import RunSnapshots, Snapshot, load_snapshots
from hetfl.analysis.snapshots import Snapshots

__all__ = [
    "Run",
    "RunSnapshots",
    "Snapshot",
    "Snapshots",
    "load_run",
    "load_snapshots",
    "plot_accuracy_over_bytes",
    "plot_accuracy_over_rounds",
    "plot_run",
]
