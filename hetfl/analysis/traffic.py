"""Compression per layer: the density of each layer over rounds, and the residuals of each layer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.store import ClientStore, DiskStore, MemoryStore


def layer_density(layers: pd.DataFrame) -> pd.DataFrame:
    r"""Return the fraction of the held entries that was sent, per tensor and round, over all levels.

    .. math:: \rho_{t,r} = \frac{\sum_l \mathrm{sent}_{l,t,r}}{\sum_l \mathrm{held}_{l,t,r}}

    Args:
        layers: the result of :meth:`hetfl.analysis.RunSnapshots.layers`.

    Returns:
        A row per tensor in the order of the net, a column per round (``step``); NaN where no client held an entry.
    """
    sums = layers.groupby(["tensor", "step"], sort=False)[["held", "sent"]].sum()
    return (sums["sent"] / sums["held"]).unstack("step").loc[layers["tensor"].unique()]


def load_residuals(checkpoint: str | Path, folder: str | Path | None = None) -> ClientStore:
    """Open the residuals that a checkpoint contains or refers to.

    Args:
        checkpoint: the file, such as ``checkpoints/last.ckpt`` in a run folder.
        folder: the folder with the files of residuals, if they are on disk; None: ``residuals`` in the run folder.

    Returns:
        A store from which the residuals of each client can be read.

    Raises:
        ConfigurationError: the checkpoint cannot be read, is not of a federated run, or holds weights only.
    """
    path = Path(checkpoint)
    federation = SafeCheckpointIO().load_checkpoint(path).get("hetfl")
    if federation is None:
        raise ConfigurationError(f"Expected a checkpoint of a federated run but got {path}, which is of another run")
    if "uplink" not in (pieces := federation["pieces"]):
        raise ConfigurationError(f"Expected a checkpoint with residuals but got {path}, which holds weights only")
    state = pieces["uplink"]["residuals"]
    where = path.parent.parent / "residuals" if folder is None else Path(folder)
    store: ClientStore = MemoryStore() if "blocks" in state else DiskStore(str(where))
    store.load_state_dict(state)
    return store


def layer_residuals(store: ClientStore) -> pd.DataFrame:
    r"""Return the norm of the residuals of error feedback per tensor: over all clients, and per entry.

    .. math:: \sqrt{\sum_k \lVert e_{k,t} \rVert^2}, \qquad \sqrt{\sum_k \lVert e_{k,t} \rVert^2 \Big/ \sum_k d_{k,t}}

    with :math:`d_{k,t}` the number of entries of the block that covers all entries of tensor t that client k has held.
    The unit is that of a delta, which contains the learning rate of its round. The root of the sum of squares over
    tensors is ``residual/norm`` of ``metrics.csv``.

    Args:
        store: the residuals, from :func:`load_residuals` or ``module.uplink.residuals``.

    Returns:
        A row per tensor with a residual: ``clients``, the number of clients that have one, ``norm`` and ``rms``, the
        root mean square of an entry, in float64.
    """
    rows = [
        (name, block.numel(), float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2)
        for client in store.clients()
        for name, block in store.load(client).items()
    ]
    blocks = pd.DataFrame(rows, columns=["tensor", "entries", "square"]).groupby("tensor", sort=False)
    square = blocks["square"].sum()
    return pd.DataFrame(
        {"clients": blocks.size(), "norm": square**0.5, "rms": (square / blocks["entries"].sum()) ** 0.5}
    )
