"""Which pictures of a run there are at its end."""

from __future__ import annotations

from pathlib import Path

from hetfl.analysis.clusters import has_splits, load_clusters, splits_of

OF_A_RUN = ("accuracy_over_rounds", "accuracy_over_bytes")
"""Names of the pictures that every validated run has."""


def expected_pictures(folder: Path) -> list[Path]:
    """Return the files that ``plot_run`` and ``plot_clusters`` write for a run.

    Args:
        folder: the run folder.

    Raises:
        ConfigurationError: its ``clusters.csv`` can't be read.
    """
    names = [*OF_A_RUN]
    if (folder / "clusters.csv").is_file():
        names.append("clusters")
        if has_splits(folder) and splits_of(load_clusters(folder)):
            names.append("cluster_tree")
    return [folder / "plots" / f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
