"""The decoded updates of a round, and sums of them over the entries of the global model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.entries import Entries
from hetfl.layout import Index
from hetfl.part import Part, only, part_of
from hetfl.submodel import prefix_index
from hetfl.types import Report
from hetfl.updates import Update


@dataclass(frozen=True)
class Member:
    """A client's accepted update in a round.

    Attributes:
        report: the client's report.
        vector: the values of the trained parameters that it holds, shape (d,), float64.
        entries: their positions in the flat vector of all trained parameters.
    """

    report: Report
    vector: Tensor
    entries: Entries


class Cohort:
    """The updates of a round, of trained parameters alone; buffers are left out.

    Args:
        parameters: the trained parameters of the global model, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.names = frozenset(parameters)
        self.whole = Part(prefix_index(parameters, parameters, "a"))
        self.members: list[Member] = []

    def clear(self) -> None:
        """Begin a round."""
        self.members = []

    def add(self, update: Update, index: Index, report: Report) -> None:
        """Add an accepted update."""
        part = only(part_of(index), self.names)
        _, entries = part.derived(("value", id(self.whole)), lambda: (self.whole, Entries(part, self.whole)))
        self.members.append(Member(report, update.to_dense().double().cpu(), entries))

    def zeros(self) -> Tensor:
        """Return zeros for all trained parameters, shape (D,), float64."""
        return torch.zeros(self.whole.layout.size, dtype=torch.float64)

    def sums(self, weights: Mapping[int, float]) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of all updates, and the weight of the holders of each entry, shape (D,) each.

        Args:
            weights: by client id.
        """
        total_D, holders_D = self.zeros(), self.zeros()
        for member in self.members:
            positions, weight = member.entries.positions(total_D), weights[member.report.client]
            total_D.index_add_(0, positions, member.vector, alpha=weight)
            holders_D.index_add_(0, positions, torch.full_like(member.vector, weight))
        return total_D, holders_D


def cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of two vectors; 0 if one of them is zero or empty."""
    norms = float(torch.linalg.vector_norm(one) * torch.linalg.vector_norm(other))
    return float(one @ other) / norms if norms > 0.0 else 0.0
