"""A reader for ``clusters.csv`` of a run: the cluster of each client over rounds, and the splits of clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, check_size

COLUMNS = ["round", "client", "cluster"]


@dataclass(frozen=True)
class ClusterSplit:
    """A split of a cluster into two.

    Attributes:
        round: the cluster is split at the end of this round.
        parent: the number of the cluster, which one of the two keeps.
        child: the number of the new cluster.
    """

    round: int
    parent: int
    child: int


def load_clusters(folder: str | Path) -> pd.DataFrame:
    """Return ``clusters.csv`` of a run: a row for every change of the cluster of a client.

    Raises:
        ConfigurationError: the file is missing, or is not such a table.
    """
    path = Path(folder) / "clusters.csv"
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run with model.clustering, but got no such file")
    check_size(path, LARGEST_TABLE)
    try:
        table = pd.read_csv(path)
        whole = list(table.columns) == COLUMNS and all(kind.kind == "i" for kind in table.dtypes)
        whole = whole and isinstance(table.index, pd.RangeIndex)  # otherwise a line has too many cells
    except ValueError:  # not a table
        whole = False
    if not whole or not len(table) or int(table.to_numpy().min()) < 0:
        raise ConfigurationError(f"Expected whole numbers in columns {', '.join(COLUMNS)} of {path} but got others")
    return table


def assignments(table: pd.DataFrame, rounds: int) -> NDArray[np.int64]:
    """Return the cluster of each client after each round, shape (N, rounds); -1 before its first cluster.

    Args:
        table: the result of :func:`load_clusters`.
        rounds: number of rounds.
    """
    clusters_NR = np.full((int(table["client"].max()) + 1, rounds), -1, dtype=np.int64)
    for round, client, cluster in table[COLUMNS].itertuples(index=False):
        clusters_NR[client, round:] = cluster
    return clusters_NR


def has_splits(folder: str | Path) -> bool:
    """Return whether the clusters of a run change only by splits, as in ClusteredFL: it has ``cluster_tree.csv``."""
    return (Path(folder) / "cluster_tree.csv").is_file()


def splits_of(table: pd.DataFrame) -> list[ClusterSplit]:
    """Return the splits in a table; empty if clients changed clusters in another way.

    Clients that choose their cluster can also move as if a cluster was split, so call :func:`has_splits` first.
    """
    present: dict[int, int] = {}
    splits: dict[int, ClusterSplit] = {}
    for round, client, cluster in table[COLUMNS].itertuples(index=False):
        parent = present.get(client)
        present[client] = cluster
        if parent is None and cluster == 0:
            continue
        if parent is None or cluster == 0:
            return []
        split = ClusterSplit(round, parent, cluster)
        if splits.setdefault(cluster, split) != split:
            return []
    return list(splits.values())
