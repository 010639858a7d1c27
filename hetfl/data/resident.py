"""The samples in memory in the order of the clients, so that the data of a client is a view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData, Samples
from hetfl.data.split import Split
from hetfl.data.transform import Transform
from hetfl.tree import Tree, divided, taken


@dataclass(frozen=True)
class Resident:
    """A data set after its split.

    Attributes:
        train: the training samples of each client, views of one tensor.
        test: the test samples of each client, views of ``all_test``.
        all_test: all test samples: those of client 0, of client 1, ..., then those of no client.
        test_owner: int64, shape (n_test,): the client of each sample of ``all_test``, or -1.
        validation: the samples held out from the training data.
        validation_owner: int64, shape (n_validation,): the client whose transform each sample got, or -1.
        labels: bool, shape (N, K): the labels in the training data of each client.
        unassigned: number of training samples that the partitioner left out.
        server: the samples of the server, unchanged by client transforms.
        held_out: the training samples that each client holds out; empty: no client does.
        changed_as: per client its number, and the number of clients, when a client transform changed its samples.
    """

    train: tuple[ClientData, ...]
    test: tuple[ClientData, ...]
    all_test: ClientData
    test_owner: Tensor
    validation: ClientData
    validation_owner: Tensor
    labels: Tensor
    unassigned: int
    server: ClientData
    held_out: tuple[ClientData, ...] = ()
    changed_as: tuple[tuple[int, int], ...] = ()

    def of_client(self, client: int, split: Samples) -> ClientData:
        """Return the samples of a client."""
        return {"train": self.train, "validation": self.held_out, "test": self.test}[split][client]

    @staticmethod
    def of(arrays: Arrays, split: Split, validation_owner: Tensor | None = None) -> Resident:
        """Copy the samples of a data set into the order of a split.

        Args:
            arrays: the data set.
            split: the samples of each client.
            validation_owner: the client whose transform each held-out sample got; None: no client transform.
        """
        unmatched = torch.ones(len(arrays.test), dtype=torch.bool)
        unmatched[torch.cat(split.test)] = False
        test_parts = [*split.test, unmatched.nonzero().flatten()]
        owners = torch.tensor([*range(len(split.test)), -1])
        all_test = _take(arrays.test, torch.cat(test_parts))
        return Resident(
            train=_views(_take(arrays.train, torch.cat(split.train)), split.train),
            test=_views(all_test, test_parts)[:-1],
            all_test=all_test,
            test_owner=owners.repeat_interleave(torch.tensor([len(part) for part in test_parts])),
            validation=_take(arrays.train, split.validation),
            validation_owner=torch.full_like(split.validation, -1) if validation_owner is None else validation_owner,
            labels=torch.stack([_owned(arrays, part) for part in split.train]),
            unassigned=split.unassigned,
            server=_take(arrays.train, split.server),
            held_out=tuple(_take(arrays.train, part) for part in split.held_out),
            changed_as=tuple((client, len(split.train)) for client in range(len(split.train))),
        )


def _owned(arrays: Arrays, part: Tensor) -> Tensor:
    assert arrays.objective is not None
    return arrays.objective.label_counts(arrays.train.targets[part], arrays.outputs) > 0


@dataclass(frozen=True)
class ServerSamples:
    """The samples of the server, for pieces that declare that they read them.

    Attributes:
        samples: raw samples.
        transform: turns raw inputs into the inputs of nets.
    """

    samples: ClientData
    transform: Transform

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, positions: Tensor) -> tuple[Tree, Tensor]:
        """Return inputs after the evaluation transform, and targets, of the samples at int64 positions."""
        chosen = _take(self.samples, positions)
        return self.transform.eval(chosen.inputs), chosen.targets


def _take(data: ClientData, positions: Tensor) -> ClientData:
    return ClientData(taken(data.inputs, positions), data.targets[positions])


def _views(data: ClientData, parts: Sequence[Tensor]) -> tuple[ClientData, ...]:
    """Return consecutive views with the sizes of ``parts``."""
    sizes = [len(part) for part in parts]
    return tuple(map(ClientData, divided(data.inputs, sizes), data.targets.split(sizes)))
