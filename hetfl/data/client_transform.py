"""Transforms of a client's samples: clients that differ in their inputs, or in how well their data is labelled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.matched import matched_partition
from hetfl.data.split import Split
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator
from hetfl.tree import Tree, single


class ClientTransform(ABC):
    """Changes the raw training and test samples of a client, or its training labels, once, after the partition.

    A subclass overrides :meth:`apply` or :meth:`relabel`. Augmentation and normalisation by a
    :class:`~hetfl.data.Transform` come later and are the same for all clients.
    """

    train_only: ClassVar[bool] = False
    """Whether :meth:`apply` is for training samples alone: held-out and test samples then stay as they are."""

    def apply(self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator) -> Tensor:
        """Return the changed inputs of a client: the same shape, and one dtype for all clients. By default unchanged.

        Args:
            inputs: raw samples, shape (n, ...).
            client: the number of the client.
            num_clients: number of clients N.
            unit: the raw value that is 1 after scaling: white in an image, 1 in a table of floats.
            generator: source of every random choice.

        Raises:
            ConfigurationError: the transform does not fit the samples or the number of clients.
        """
        return inputs

    def relabel(
        self, targets: Tensor, client: int, num_clients: int, num_classes: int, generator: torch.Generator
    ) -> Tensor:
        """Return the changed training labels of a client, int64, shape (n,). By default unchanged.

        Args:
            targets: class numbers, int64, shape (n,).
            client: the number of the client.
            num_clients: number of clients N.
            num_classes: number of classes K.
            generator: source of every random choice.
        """
        return targets

    def amount(self, client: int, num_clients: int) -> float:
        """Return how noisy the samples of a client become, 0 for clean ones; by default 0."""
        return 0.0

    @abstractmethod
    def describe(self, client: int, num_clients: int) -> str:
        """Return the change of the samples of a client in a few words."""


def as_clients_see(
    arrays: Arrays, split: Split, transform: ClientTransform, unit: float, seed: int
) -> tuple[Arrays, Tensor]:
    """Return a data set in which every sample has the transform of a client, and the clients of the held-out samples.

    Labels change only in the clients' training samples: scores are those on true labels.

    Held-out and global test samples get the transforms of clients too, in proportion to the classes of the clients.
    Otherwise accuracies would be measured on images that no client has. Held-out samples are matched to clients like
    test samples (:func:`~hetfl.data.matched_partition`). A sample that matches no client gets the transform of a random
    client, drawn in proportion to the number of training samples, and still belongs to no client.

    Args:
        arrays: the data set.
        split: the samples of each client.
        transform: the change of the samples of each client.
        unit: the raw value that is 1 after scaling.
        seed: seed of every random choice, together with the number of the client.

    Returns:
        The data set, and for each held-out sample, in the order of the split, the client whose transform it got.

    Raises:
        ConfigurationError: the transform does not fit this data.
    """
    targets, classes = arrays.train.targets, arrays.classes(arrays.train)
    matching = generator(seed, "client transform", "matching")
    held_out = matched_partition(classes, split.train, classes[split.validation], matching)
    held_out = _with_strays(held_out, len(split.validation), split.train, matching)
    owner = torch.empty(len(split.validation), dtype=torch.int64)
    for client, part in enumerate(held_out):
        owner[part] = client
    test = _with_strays(split.test, len(arrays.test), split.train, matching)
    shares: dict[str, Sequence[Tensor]]
    shares = {"train": split.train, "validation": [split.validation[part] for part in held_out]}
    train_inputs, test_inputs = arrays.train.inputs, arrays.test.inputs
    if type(transform).apply is not ClientTransform.apply:
        shares = {"train": split.train} if transform.train_only else shares
        train_inputs = _seen(train_inputs, shares, transform, unit, seed)
        test_inputs = _seen(test_inputs, {} if transform.train_only else {"test": test}, transform, unit, seed)
    if type(transform).relabel is not ClientTransform.relabel:
        targets = _relabelled(arrays, split.train, transform, seed)
    seen = replace(arrays, train=ClientData(train_inputs, targets), test=ClientData(test_inputs, arrays.test.targets))
    return seen, owner


def _relabelled(arrays: Arrays, parts: Sequence[Tensor], transform: ClientTransform, seed: int) -> Tensor:
    """Return the training targets, with those of each client changed."""
    name, targets = type(transform).__name__, arrays.train.targets.clone()
    objective = arrays.objective
    if objective is None or objective.single_labels(targets) is None or targets.dim() != 1:
        raise ConfigurationError(
            f"Expected targets that are one class each for client_transform {name} but got those of "
            f"{type(objective).__name__}"
        )
    for client, part in enumerate(parts):
        random = generator(seed, "client transform", "labels", client)
        changed = transform.relabel(targets[part], client, len(parts), arrays.outputs, random)
        if changed.shape != part.shape or changed.dtype != targets.dtype:
            raise ConfigurationError(
                f"Expected {targets.dtype} labels of shape {tuple(part.shape)} from {name} but got {changed.dtype} "
                f"{tuple(changed.shape)} for client {client}"
            )
        targets[part] = changed
    return targets


def _with_strays(parts: Sequence[Tensor], total: int, train: Sequence[Tensor], random: torch.Generator) -> list[Tensor]:
    """Return the parts with every unassigned position below ``total`` added to a random part.

    A part is drawn in proportion to the number of training samples of its client.
    """
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
    """Return all inputs, with the positions of each client transformed; other positions stay unchanged."""
    setting = f"client_transform {type(transform).__name__}"
    raw = single(inputs, setting)
    if raw.dtype != torch.uint8 and not raw.is_floating_point():
        raise ConfigurationError(f"Expected inputs of uint8 or floats for {setting} but got {raw.dtype}")
    seen: Tensor | None = None
    for name, parts in shares.items():
        for client, part in enumerate(parts):
            if not len(part):
                continue
            random = generator(seed, "client transform", name, client)
            changed = transform.apply(raw[part], client, len(parts), unit, random)
            seen = raw.to(changed.dtype, copy=True) if seen is None else seen
            if changed.shape != (len(part), *raw.shape[1:]) or changed.dtype != seen.dtype:
                raise ConfigurationError(
                    f"Expected inputs of shape {tuple(raw[part].shape)} and one type for all clients from "
                    f"{type(transform).__name__} but got {changed.dtype} {tuple(changed.shape)} for client {client}"
                )
            seen[part] = changed
    return raw if seen is None else seen
