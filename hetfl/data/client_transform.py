"""What a client's samples look like to it: clients that differ in their inputs, not only in their labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.matched import matched_partition
from hetfl.data.split import Split
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator
from hetfl.tree import Tree, single


class ClientTransform(ABC):
    """Changes the raw samples of a client, once, when the data is shared out: its training and its test samples alike.

    What a :class:`~hetfl.data.Transform` does, augmentation and normalisation, comes after it and is the same for all.
    """

    @abstractmethod
    def apply(self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator) -> Tensor:
        """Return a client's samples as it sees them: of the same shape, and of one type for all clients.

        Args:
            inputs: raw, shape (n, ...).
            client: the client's number.
            num_clients: number of clients N.
            unit: the raw value that stands for 1: white in an image, 1 in a table of floats.
            generator: what every random choice draws from.

        Raises:
            ConfigurationError: there are no such samples or clients to be changed in this way.
        """

    @abstractmethod
    def describe(self, client: int, num_clients: int) -> str:
        """Return in a word or two what becomes of a client's samples."""


def as_clients_see(
    arrays: Arrays, split: Split, transform: ClientTransform, unit: float, seed: int
) -> tuple[Arrays, Tensor]:
    """Return a data set with every sample as the client sees it that it belongs to, and whose held-out samples are.

    Held-out and global test samples must look like what clients see, in the same proportions, or accuracies would be
    measured on images that nobody has. So held-out samples are matched to clients as test samples are
    (:func:`~hetfl.data.matched_partition`), and samples that match nobody are seen as a client does that is drawn in
    proportion to its number of training samples; they stay nobody's.

    Args:
        arrays: the data set.
        split: who has which sample.
        transform: what becomes of a client's samples.
        unit: the raw value that stands for 1.
        seed: of every random choice, with the client's number.

    Returns:
        The data set, and for each held-out sample, in the order of the split, the client as which it is seen.

    Raises:
        ConfigurationError: the transform can't be used on this data.
    """
    targets, classes = arrays.train.targets, arrays.classes(arrays.train)
    matching = generator(seed, "client transform", "matching")
    held_out = matched_partition(classes, split.train, classes[split.validation], matching)
    held_out = _with_strays(held_out, len(split.validation), split.train, matching)
    owner = torch.empty(len(split.validation), dtype=torch.int64)
    for client, part in enumerate(held_out):
        owner[part] = client
    test = _with_strays(split.test, len(arrays.test), split.train, matching)
    shares = {"train": split.train, "validation": [split.validation[part] for part in held_out]}
    train_inputs = _seen(arrays.train.inputs, shares, transform, unit, seed)
    test_inputs = _seen(arrays.test.inputs, {"test": test}, transform, unit, seed)
    seen = replace(arrays, train=ClientData(train_inputs, targets), test=ClientData(test_inputs, arrays.test.targets))
    return seen, owner


def _with_strays(parts: Sequence[Tensor], total: int, train: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Return parts to which each position below ``total`` that is in none was added, drawn by training samples."""
    stray = torch.ones(total, dtype=torch.bool)
    stray[torch.cat(list(parts))] = False
    positions = stray.nonzero().flatten()
    if not len(positions):
        return list(parts)
    weights = torch.tensor([len(part) for part in train], dtype=torch.float64)
    drawn = torch.multinomial(weights, len(positions), replacement=True, generator=random)
    return [torch.cat([part, positions[drawn == client]]) for client, part in enumerate(parts)]


def _seen(
    inputs: Tree, shares: dict[str, Sequence[Tensor]], transform: ClientTransform, unit: float, seed: int
) -> Tensor:
    """Return all inputs, those at each client's positions as the client sees them; what is nobody's stays as it is."""
    who = f"client_transform {type(transform).__name__}"
    raw = single(inputs, who)
    if raw.dtype != torch.uint8 and not raw.is_floating_point():
        raise ConfigurationError(f"Expected inputs of uint8 or floats for {who} but got {raw.dtype}")
    seen: Tensor | None = None
    for name, parts in shares.items():
        for client, part in enumerate(parts):
            if not len(part):
                continue
            random = generator(seed, "client transform", name, client)
            own = transform.apply(raw[part], client, len(parts), unit, random)
            seen = raw.to(own.dtype, copy=True) if seen is None else seen
            if own.shape != (len(part), *raw.shape[1:]) or own.dtype != seen.dtype:
                raise ConfigurationError(
                    f"Expected inputs of shape {tuple(raw[part].shape)} and one type for all clients from "
                    f"{type(transform).__name__} but got {own.dtype} {tuple(own.shape)} for client {client}"
                )
            seen[part] = own
    return raw if seen is None else seen
