"""Cohorts of sub-models for tests of robust aggregators, and the same cohorts as NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.aggregators import Aggregator
from hetfl.layout import IndexEntry
from hetfl.part import Part
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update

Array = NDArray[np.float64]
SHAPES = {"kernel": (6, 5, 2), "bias": (6,), "scale": (), "running_mean": (6,)}
"""Shapes of the global tensors; the last one is a float buffer."""
LEVELS = {"a": (6, 5), "b": (4, 3), "c": (2, 2)}
"""By level, the leading rows and columns that it holds."""


@dataclass(frozen=True)
class Client:
    """One client's update."""

    update: Update
    part: Part
    report: Report

    @property
    def arguments(self) -> tuple[Update, Part, Report]:
        return self.update, self.part, self.report


def tensors() -> dict[str, Tensor]:
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def part_of_level(level: str, random: torch.Generator, positions: bool = False, masked: bool = False) -> Part:
    """Return the leading block of a level, or random channels; with a mask, two thirds of the kernel."""
    height, width = LEVELS[level]
    rows: slice | Tensor = slice(0, height)
    columns: slice | Tensor = slice(0, width)
    if positions:
        rows = torch.randperm(6, generator=random)[:height].sort().values
        columns = torch.randperm(5, generator=random)[:width].sort().values
    kernel: IndexEntry = (rows, columns, slice(0, 2))
    part = Part({"kernel": kernel, "bias": (rows,), "scale": (), "running_mean": (rows,)})
    if not masked:
        return part
    mask_D = torch.ones(part.layout.size, dtype=torch.bool)
    mask_D[: 2 * height * width] = torch.rand(2 * height * width, generator=random) < 2 / 3
    return Part(part, mask_D)


def cohort(levels: str, seed: int = 0, positions: bool = False, masked: bool = False) -> list[Client]:
    """Return clients of the given levels, one letter each, whose values are random."""
    random = torch.Generator().manual_seed(seed)
    clients = []
    for client, level in enumerate(levels):
        part = part_of_level(level, random, positions, masked)
        vector = torch.randn(part.size, generator=random, dtype=torch.float64)
        vector = vector.round(decimals=1) if client % 2 else vector  # equal values are a corner of sorting
        exact = LEVELS[level][0]
        report = Report(client, level, 3 + client, 0.5, lr=0.1)
        clients.append(Client(DenseUpdate(vector[:-exact], exact=vector[-exact:]), part, report))
    return clients


def scaled(client: Client, factor: float) -> Client:
    return replace(client, update=client.update.scaled(factor))


def spread(clients: Sequence[Client]) -> dict[str, Array]:
    """Return by name the values of all clients in global coordinates, shape (S, ...), NaN where one holds nothing."""
    values = {name: np.full((len(clients), *shape), np.nan) for name, shape in SHAPES.items()}
    for number, client in enumerate(clients):
        vector = np.concatenate([client.update.to_dense().numpy(), client.update.exact.numpy()])
        held = np.ones(client.part.layout.size, dtype=bool)
        if client.part.mask_D is not None:
            held = client.part.mask_D.numpy()
        flat = np.full(held.shape, np.nan)
        flat[held] = vector
        position = 0
        for name, entry in client.part.items():
            axes = [np.arange(e.start, e.stop) if isinstance(e, slice) else e.numpy() for e in entry]
            shape = tuple(len(axis) for axis in axes)
            size = int(np.prod(shape))
            held_values = flat[position : position + size].reshape(shape)
            values[name][np.ix_(np.array([number]), *axes)] = held_values[None]
            position += size
    return values


def played(aggregator: Aggregator, clients: Sequence[Client]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the steps and holders of a round."""
    aggregator.reset(tensors())
    for client in clients:
        aggregator.update(*client.arguments)
    steps, holders = aggregator.compute()
    return {n: steps[n].numpy().copy() for n in SHAPES}, {n: holders[n].numpy().copy() for n in SHAPES}


def column(values: Array, where: tuple[int, ...]) -> Array:
    """Return the values of the holders of one entry."""
    held = np.array([client[where] for client in values])
    values_of_holders: Array = held[~np.isnan(held)]
    return values_of_holders
