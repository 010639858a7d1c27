"""The division of a data set: held-out validation samples, server samples, training and test samples per client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
        validation: in the training set; these samples belong to no client.
        test: per client, in the test set.
        unassigned: number of training samples that are not held out and belong to no client.
        names: the name of each client in the data; None: the partitioner does not use client ids.
        dropped: the names, or else the numbers, of the clients that were left out.
        server: in the training set; the samples of the server.
        held_out: per client, in the training set: the samples that it holds out; empty: no client does.
    """

    train: tuple[Tensor, ...]
    validation: Tensor
    test: tuple[Tensor, ...]
    unassigned: int
    names: tuple[str | int, ...] | None = None
    dropped: tuple[str | int, ...] = ()
    server: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    held_out: tuple[Tensor, ...] = ()


def make_split(
    arrays: Arrays,
    partitioner: Partitioner,
    num_clients: int | None,
    val_fraction: float,
    min_samples: int,
    seed: int,
    drop_small_clients: bool = False,
    server_fraction: float = 0.0,
    server_to_clients: bool = False,
) -> Split:
    """Return a split: hold samples out, then divide the other training samples and the test set among the clients.

    The result depends only on the arguments.

    Raises:
        ConfigurationError: a fraction is out of range, the partitioner fails or assigns a sample twice, or a client
            has fewer than ``min_samples`` training samples without ``drop_small_clients``.
    """
    classes = arrays.classes(arrays.train)
    rest, held_out = hold_out(len(classes), val_fraction, generator(seed, "validation"))
    shared, kept_back = hold_out(len(rest), server_fraction, generator(seed, "server data"), "server_fraction")
    rest, server = rest[shared], rest[kept_back]
    keys, num_clients, ids = _keys(arrays, partitioner, num_clients)
    parts = partitioner(keys[rest], num_clients, generator(seed, "partition"))
    _check_parts(parts, num_clients, partitioner)
    names = None if ids is None else [arrays.name_of(code) for code in ids.tolist()]
    kept = _large_enough([len(part) for part in parts], min_samples, drop_small_clients, names)
    dropped = sorted(set(range(num_clients)) - set(kept))
    train = tuple(rest[parts[client]] for client in kept)
    unassigned = len(rest) - sum(len(part) for part in train)
    if server_to_clients:
        train, server = dealt(server, train, generator(seed, "server to clients")), server[:0]
    if ids is not None and arrays.test_clients is not None:
        test = _by_id(ids[kept], arrays.test_clients)
    else:
        matching = generator(seed, "partition", "test")
        test = matched_partition(classes, train, arrays.classes(arrays.test), matching)
    return Split(
        train,
        held_out,
        tuple(test),
        unassigned,
        None if names is None else tuple(names[client] for client in kept),
        tuple(client if names is None else names[client] for client in dropped),
        server,
    )


def _check_parts(parts: Sequence[Tensor], num_clients: int, partitioner: Partitioner) -> None:
    """Refuse parts of clients that are not as many as asked for, or that have a common sample.

    Raises:
        ConfigurationError: they are such parts.
    """
    taken = torch.cat(list(parts))
    if len(parts) != num_clients or len(taken.unique()) != len(taken):
        raise ConfigurationError(
            f"Expected {num_clients} parts without a common sample from {type(partitioner).__name__} "
            f"but got {len(parts)} parts with {len(taken) - len(taken.unique())} samples given away twice"
        )


def dealt(samples: Tensor, train: Sequence[Tensor], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Return clients' positions, ascending, after samples were dealt to them in random order, one each in turn."""
    order = samples[torch.randperm(len(samples), generator=generator)]
    return tuple(torch.cat([part, order[k :: len(train)]]).sort().values for k, part in enumerate(train))


def fraction_checked(fraction: float, setting: str) -> float:
    """Return a held-out fraction.

    Raises:
        ConfigurationError: it is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ConfigurationError(f"Expected a held-out fraction ({setting}) in [0, 1) but got {fraction}")
    return fraction


def with_held_out(split: Split, fraction: float, min_samples: int, seed: int) -> Split:
    """Return a split in which each client holds a fraction of its training samples out, drawn at random.

    A client that would keep, or hold out, fewer than ``min_samples`` holds none out.
    """
    if not fraction:
        return split
    train, held_out = [], []
    for client, part in enumerate(split.train):
        count = round(fraction * len(part))
        count = count if min(count, len(part) - count) >= min_samples else 0
        order = torch.randperm(len(part), generator=generator(seed, "client validation", client))
        train.append(part[order[count:].sort().values])
        held_out.append(part[order[:count].sort().values])
    return replace(split, train=tuple(train), held_out=tuple(held_out))


def hold_out(
    num_samples: int, fraction: float, generator: torch.Generator, setting: str = "val_fraction"
) -> tuple[Tensor, Tensor]:
    """Return the positions that are kept and those that are held out, both ascending; the draw is not stratified.

    Raises:
        ConfigurationError: the fraction is outside [0, 1), or positive and selects no sample or all samples.
    """
    fraction_checked(fraction, setting)
    num_held_out = round(fraction * num_samples)
    if fraction > 0 and not 0 < num_held_out < num_samples:
        raise ConfigurationError(
            f"Expected to hold out some of {num_samples} samples ({setting}) but a fraction of {fraction} makes "
            f"{num_held_out}"
        )
    order = torch.randperm(num_samples, generator=generator)
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values


def _large_enough(sizes: Sequence[int], min_samples: int, drop: bool, names: Sequence[str | int] | None) -> list[int]:
    """Return the clients with at least ``min_samples`` training samples.

    Args:
        sizes: number of training samples of each client.
        min_samples: smallest number of training samples.
        drop: leave smaller clients out; otherwise they are an error.
        names: the names of the clients in the data; None: it has no client ids.

    Raises:
        ConfigurationError: a client has fewer samples and ``drop`` is false, or all clients have fewer.
    """
    kept = [client for client, size in enumerate(sizes) if size >= min_samples]
    small = len(sizes) - len(kept)
    if not small or (drop and kept):
        return kept
    client = min(range(len(sizes)), key=sizes.__getitem__)
    smallest = f"client {client}" if names is None else f"client {client} (id {names[client]!r})"
    if drop:
        raise ConfigurationError(
            f"Expected a client with at least {min_samples} training samples (min_samples) but the largest of "
            f"{len(sizes)} has {max(sizes)}"
        )
    more = f" ({small} clients have too few)" if small > 1 else ""
    raise ConfigurationError(
        f"Expected at least {min_samples} training samples per client (min_samples) but {smallest} has {sizes[client]}"
        f"{more}: use fewer clients or a milder partitioner, leave such clients out by drop_small_clients: true, or "
        "set min_samples: 1, which works without batch norm"
    )


def _keys(arrays: Arrays, partitioner: Partitioner, num_clients: int | None) -> tuple[Tensor, int, Tensor | None]:
    """Return the keys for the partitioner, the number of clients, and the client ids in the data, ascending.

    A key is the class of a training sample (the ids are then None), or its client.
    """
    if not partitioner.by_client_id:
        if num_clients is None:
            raise ConfigurationError(
                f"Expected num_clients, as {type(partitioner).__name__} does not go by client ids, but got null"
            )
        if partitioner.by_class and arrays.objective and arrays.objective.single_labels(arrays.train.targets) is None:
            raise ConfigurationError(
                f"Expected samples of one class each, as {type(partitioner).__name__} goes by classes, but got "
                f"those of {type(arrays.objective).__name__}: choose hetfl.data.IID, say"
            )
        return arrays.classes(arrays.train), num_clients, None
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
    return keys, len(ids), ids


def _by_id(ids: Tensor, test_clients: Tensor) -> list[Tensor]:
    """Return per client the test samples with its id; samples of an id without training data belong to no client."""
    clients = torch.searchsorted(ids, test_clients).clamp(max=len(ids) - 1)
    return positions_by_owner(torch.where(ids[clients] == test_clients, clients, -1), len(ids))
