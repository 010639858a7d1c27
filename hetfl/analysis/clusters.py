"""Who was in which cluster when, and how clusters split: a run's ``clusters.csv``, read back."""

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
    """A cluster that became two.

    Attributes:
        round: at the end of which it was split.
        parent: its number, which one part keeps.
        child: the number of the other part.
    """

    round: int
    parent: int
    child: int


def load_clusters(folder: str | Path) -> pd.DataFrame:
    """Return a run's ``clusters.csv``: a row for every time that a client's cluster changed.

    Raises:
        ConfigurationError: there is no such file, or it is another table.
    """
    path = Path(folder) / "clusters.csv"
    if not path.is_file():
        raise ConfigurationError(f"Expected {path}, of a run with model.clustering, but got no such file")
    check_size(path, LARGEST_TABLE)
    try:
        table = pd.read_csv(path)
        whole = list(table.columns) == COLUMNS and all(kind.kind == "i" for kind in table.dtypes)
        whole = whole and isinstance(table.index, pd.RangeIndex)  # else a line has a cell too many
    except ValueError:  # no table at all
        whole = False
    if not whole or not len(table) or int(table.to_numpy().min()) < 0:
        raise ConfigurationError(f"Expected whole numbers in columns {', '.join(COLUMNS)} of {path} but got others")
    return table


def assignments(table: pd.DataFrame, rounds: int) -> NDArray[np.int64]:
    """Return each client's cluster after each round, shape (N, rounds), -1 while it has none.

    Args:
        table: what :func:`load_clusters` returned.
        rounds: number of rounds.
    """
    found = np.full((int(table["client"].max()) + 1, rounds), -1, dtype=np.int64)
    for round, client, cluster in table[COLUMNS].itertuples(index=False):
        found[client, round:] = cluster
    return found


def has_splits(folder: str | Path) -> bool:
    """Return whether clusters of a run come about by splits alone: it has ``cluster_tree.csv``, as of ClusteredFL."""
    return (Path(folder) / "cluster_tree.csv").is_file()


def splits_of(table: pd.DataFrame) -> list[ClusterSplit]:
    """Return the splits that a table tells of; none if clients changed clusters in another way.

    Clients that choose can move as if a cluster was split: ask :func:`has_splits` first.
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
