"""The table of the columns of ``metrics.csv``: the reference's names of quantities, and the column of each.

A name with a colon belongs to a family; the text after the colon replaces ``{}``.
"""

from __future__ import annotations

NAMES = {
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "val_accuracy_of": "val/accuracy_by_level/{}",
    "val_accuracy_of_head": "val/accuracy_by_head/{}",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "test_accuracy_of": "test/accuracy_by_level/{}",
    "test_accuracy_of_head": "test/accuracy_by_head/{}",
    "local_mean": "local/accuracy_mean",
    "local_by_samples": "local/accuracy_by_samples",
    "local_worst": "local/accuracy_worst10",
    "local_std": "local/accuracy_std",
    "local_var": "local/accuracy_var",
    "lr": "lr",
    "threshold": "threshold",
    "up": "comm/up_bytes",
    "down": "comm/down_bytes",
    "down_training": "comm/down_training_bytes",
    "down_statistics": "comm/down_statistics_bytes",
    "down_probes": "comm/down_probes_bytes",
    "up_total": "comm/up_bytes_total",
    "down_total": "comm/down_bytes_total",
    "density": "comm/up_density",
    "ratio": "comm/up_ratio",
    "ratio_total": "comm/up_ratio_total",
    "refused": "comm/refused",
    "flops_total": "compute/flops_total",
    "round_seconds": "sim/round_seconds",
    "seconds_total": "sim/seconds_total",
    "waited": "sim/waited",
    "reachable": "sim/reachable",
    "dropped": "sim/dropped",
    "failed": "sim/failed",
    "lost_total": "sim/lost_total",
    "residual": "residual/norm",
    "cluster_count": "cluster/count",
    "cluster_empty": "cluster/empty",
    "cluster_size": "cluster/size/{}",
    "cluster_accuracy": "cluster/accuracy/{}",
}

UNKNOWN: frozenset[str] = frozenset({"step", "compute/sparse_flops_total"})
"""Columns that the reference does not compute."""

SINGLE = ("accuracy_of", "accuracy_of_head", "_accuracy")
"""Endings of the families that the metrics library divides in float32."""


def column(name: str) -> str:
    """Return the column that holds a quantity."""
    family, _, member = name.partition(":")
    return NAMES[family].format(member)


def is_single(name: str) -> bool:
    """Return whether a quantity is accurate only to float32."""
    return name.partition(":")[0].endswith(SINGLE)
