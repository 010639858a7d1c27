"""Who has which sample: the held-out validation samples, the clients' training samples, the clients' test samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays
from hetfl.data.matched import matched_partition
from hetfl.data.partition import Partitioner, positions_by_owner
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


@dataclass(frozen=True)
class Split:
    """Positions in the data set, int64.

    Attributes:
        train: per client, in the training set.
        validation: in the training set; nobody's.
        test: per client, in the test set.
        unassigned: number of training samples that the partitioner left out.
    """

    train: tuple[Tensor, ...]
    validation: Tensor
    test: tuple[Tensor, ...]
    unassigned: int


def make_split(
    arrays: Arrays, partitioner: Partitioner, num_clients: int | None, val_fraction: float, min_samples: int, seed: int
) -> Split:
    """Hold samples out, then share the rest of the training set and the test set out: a function of the arguments only.

    Raises:
        ConfigurationError: a fraction is out of range, the partitioner fails or gives a sample away twice, or a client
            has fewer than ``min_samples`` training samples.
    """
    targets = arrays.train.targets
    rest, held_out = hold_out(len(targets), val_fraction, generator(seed, "validation"))
    keys, num_clients = _keys(arrays, partitioner, num_clients)
    parts = partitioner(keys[rest], num_clients, generator(seed, "partition"))
    taken = torch.cat(parts)
    if len(parts) != num_clients or len(taken.unique()) != len(taken):
        raise ConfigurationError(
            f"Expected {num_clients} parts without a common sample from {type(partitioner).__name__} "
            f"but got {len(parts)} parts with {len(taken) - len(taken.unique())} samples given away twice"
        )
    train = tuple(rest[part] for part in parts)
    check_sizes(train, min_samples)
    if partitioner.by_client_id and arrays.train_clients is not None and arrays.test_clients is not None:
        test = _by_id(arrays.train_clients.unique(), arrays.test_clients)
    else:
        test = matched_partition(targets, train, arrays.test.targets, generator(seed, "partition", "test"))
    return Split(train, held_out, tuple(test), len(rest) - len(taken))


def hold_out(num_samples: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the positions that stay and those held out, both ascending; the draw is not stratified.

    Raises:
        ConfigurationError: the fraction is outside [0, 1), or positive but less than one sample.
    """
    if not 0 <= fraction < 1:
        raise ConfigurationError(f"Expected a held-out fraction (val_fraction) in [0, 1) but got {fraction}")
    num_held_out = round(fraction * num_samples)
    if fraction > 0 and not 0 < num_held_out < num_samples:
        raise ConfigurationError(
            f"Expected to hold out some of {num_samples} samples but a fraction of {fraction} makes {num_held_out}"
        )
    order = torch.randperm(num_samples, generator=generator)
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values


def check_sizes(parts: Sequence[Tensor], min_samples: int) -> None:
    """Refuse clients that are too small to be trained; batch norm needs two samples.

    Raises:
        ConfigurationError: a client has fewer than ``min_samples`` samples.
    """
    sizes = [len(part) for part in parts]
    client = min(range(len(sizes)), key=sizes.__getitem__)
    if sizes[client] < min_samples:
        raise ConfigurationError(
            f"Expected at least {min_samples} training samples per client (min_samples) but client {client} has "
            f"{sizes[client]}: use fewer clients or a milder partitioner (min_samples: 1 works without batch norm)"
        )


def _keys(arrays: Arrays, partitioner: Partitioner, num_clients: int | None) -> tuple[Tensor, int]:
    """Return what the partitioner goes by, class or client of each training sample, and the number of clients."""
    if not partitioner.by_client_id:
        if num_clients is None:
            raise ConfigurationError(
                f"Expected num_clients, as {type(partitioner).__name__} does not go by client ids, but got null"
            )
        return arrays.train.targets, num_clients
    if arrays.train_clients is None:
        raise ConfigurationError(
            f"Expected client ids in the data, as {type(partitioner).__name__} goes by them, but it has none"
        )
    ids, keys = arrays.train_clients.unique(return_inverse=True)
    if num_clients not in (None, len(ids)):
        raise ConfigurationError(
            f"Expected num_clients to be null or {len(ids)}, the number of client ids in the training data, "
            f"but got {num_clients}; with partitioner hetfl.data.IID the ids are ignored"
        )
    return keys, len(ids)


def _by_id(ids: Tensor, test_clients: Tensor) -> list[Tensor]:
    """Return per client the test samples that carry its id; ids that are not in the training data are nobody's."""
    found = torch.searchsorted(ids, test_clients).clamp(max=len(ids) - 1)
    return positions_by_owner(torch.where(ids[found] == test_clients, found, -1), len(ids))
