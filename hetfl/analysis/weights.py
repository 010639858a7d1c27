"""The weights of levels: their distribution, their singular values, and how they change over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import nn

from hetfl.analysis.part_maps import as_matrix, matrices_among, smallest_levels
from hetfl.analysis.snapshot_reader import RunSnapshots
from hetfl.submodel import parameters_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def weight_quantiles(nets: Mapping[str, nn.Module], tensors: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the distribution of the weights of every level.

    Args:
        nets: the net of each level.
        tensors: names of tensors; None: all trained ones of two or more dimensions.

    Returns:
        A row per level and tensor that it has: ``level``, ``tensor``, ``entries``, ``zeros`` (the share of entries that
        are exactly 0), and ``q05``, ``q25``, ``q50``, ``q75``, ``q95``.

    Raises:
        ConfigurationError: a name is unknown to the first net.
    """
    names = matrices_among(parameters_of(next(iter(nets.values()))), tensors)
    columns = [f"q{round(100 * quantile):02d}" for quantile in QUANTILES]
    rows = []
    for level, net in nets.items():
        parameters = parameters_of(net)
        for name in (name for name in names if name in parameters):
            values_D = parameters[name].detach().double().flatten()
            spread = torch.quantile(values_D, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
            zeros = float((values_D == 0).double().mean())
            rows.append({"level": level, "tensor": name, "entries": values_D.numel(), "zeros": zeros})
            rows[-1] |= dict(zip(columns, spread, strict=True))
    return pd.DataFrame(rows)


def weight_spectra(nets: Mapping[str, nn.Module], tensors: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the singular values of the weights of every level; a kernel is a matrix with a row per output channel.

    Args:
        nets: the net of each level.
        tensors: names of tensors; None: all trained ones of two or more dimensions.

    Returns:
        A row per level, tensor and singular value, the largest first: ``level``, ``tensor``, ``position`` from 1,
        ``value``.

    Raises:
        ConfigurationError: a name is unknown to the first net, or its tensor has fewer than two dimensions.
    """
    names = matrices_among(parameters_of(next(iter(nets.values()))), tensors)
    tables = []
    for level, net in nets.items():
        parameters = parameters_of(net)
        for name in (name for name in names if name in parameters):
            values = torch.linalg.svdvals(as_matrix(parameters[name].detach().double()))
            tables.append(
                pd.DataFrame(
                    {"level": level, "tensor": name, "position": range(1, len(values) + 1), "value": values.numpy()}
                )
            )
    return pd.concat(tables, ignore_index=True)


def distance_to_last(snapshots: RunSnapshots, nets: Mapping[str, nn.Module]) -> pd.DataFrame:
    r"""Return how far the weights were from their last values, by the smallest level that holds them.

    .. math:: d_{r,l} = \|\theta_{r,l} - \theta_{R,l}\|_2 / \|\theta_{R,l}\|_2

    with :math:`\theta_{r,l}` the trained entries, after round r, of tensors with two or more dimensions whose smallest
    holder in the last snapshot R is level l. Entries that only large levels hold are trained by few clients.

    Args:
        snapshots: the snapshots of a run.
        nets: a net of each level, the largest first, built like those of the run.

    Returns:
        A row per snapshot (index ``round``), a column per level that is the smallest holder of some entry.

    Raises:
        ConfigurationError: a net is not one of its level.
    """
    last = snapshots[snapshots.rounds[-1]]
    maps, final = smallest_levels(last, nets), dict(last.weights)
    names = matrices_among(parameters_of(next(iter(nets.values()))), None)
    rows: dict[int, dict[str, float]] = {}
    for snapshot in snapshots:
        now = {name: snapshot.weights[name] for name in names}
        rows[snapshot.round] = {}
        for number, level in enumerate(nets):
            where = {name: maps[name] == number for name in names}
            end_E = torch.cat([final[name][where[name]] for name in names]).double()
            now_E = torch.cat([now[name][where[name]] for name in names]).double()
            if len(end_E):
                rows[snapshot.round][level] = float((now_E - end_E).norm() / end_E.norm())
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="round", columns="level")
