"""The base class of aggregators that compare the updates of a round before they add them up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hetfl.aggregators.base import Aggregator
from hetfl.aggregators.clipping import Length, clip_factors
from hetfl.aggregators.shelf import Shelf
from hetfl.aggregators.waiting import Waiting
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Index
from hetfl.part import Part, part_of
from hetfl.piece import Facts
from hetfl.submodel import take
from hetfl.types import COPY, SHARED, Report
from hetfl.updates import SparseUpdate, Update

Step = tuple[dict[str, Tensor], dict[str, Tensor]]
"""By name of a global tensor, the step, and the number or weight of the holders of each entry."""


class RobustAggregator(Aggregator):
    """Keeps the decoded updates of a round, and combines them at its end, in the order of their clients' ids.

    So the order of the cohort does not matter. Clients do not weigh by their samples, which they report themselves. An
    update that would make a running variance negative is refused.

    Args:
        most_bytes: bytes of waiting updates in memory; further ones are in files. None: no limit.

    Raises:
        ConfigurationError: ``most_bytes`` is negative.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self.most_bytes, self._shelf = most_bytes, Shelf(most_bytes)
        self._tensors: Mapping[str, Tensor] = {}
        self._waiting: list[Waiting] = []

    def setup(self, facts: Facts) -> None:
        """Check the facts.

        Raises:
            ConfigurationError: updates may leave entries out, which the rule cannot take.
        """
        if facts.sparse and not self.takes_sparse:
            raise ConfigurationError(
                f"Expected an uplink that sends every entry for {type(self).__name__}, which would take entries that "
                "were not sent for zeros, but got a compressor that leaves entries out"
            )

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self._shelf.folder = folder

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._tensors, self._waiting = tensors, []
        self._shelf.clear()

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Keep one client's update.

        Args:
            update: the decoded update.
            index: the part that the client sends.
            report: the client's report.

        Raises:
            RefusedUpdate: the update leaves entries out, which the rule cannot take, or makes a variance negative.
        """
        part = part_of(index)
        if isinstance(update, SparseUpdate) and not self.takes_sparse:
            raise RefusedUpdate(f"Expected an update with every entry for {type(self).__name__} but got a sparse one")
        if report.model != SHARED:  # else the aggregator of the client's model has checked them, by its values
            self._check_variances(update, part)
        self._waiting.append(Waiting(self._shelf.keep(update), part, report))

    def compute(self) -> Step:
        """Return by name the step of every tensor, and the number or weight of the holders of each entry."""
        waiting = sorted(self._waiting, key=lambda each: each.report.client)
        self._waiting = []
        return self.combine(self._tensors, waiting)

    @abstractmethod
    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:
        """Return the step and the holders of every tensor.

        Args:
            tensors: the global tensors by name; they are only read.
            waiting: the round's updates, in the order of their clients' ids.
        """

    def _check_variances(self, update: Update, part: Part) -> None:
        leaves = {name: name.partition(COPY)[0].rpartition(".")[2] for name in part}
        variances = [name for name in part if leaves[name] == "running_var"] if update.exact.numel() else []
        for name in variances:
            at, size = part.held.offsets[list(part).index(name)] - update.size, part.layout.shapes[name][0]
            least = float((take(self._tensors[name], part[name]) + update.exact[at : at + size]).min())
            if least < 0:
                raise RefusedUpdate(f"Expected variances of at least 0 in {name} but got {least:g}")


def clipped(waiting: Sequence[Waiting], factor: float = 1.0) -> list[tuple[float, float]]:
    """Return for each update the factors of its vector and of its exact block; see :func:`clip_factors`."""
    vectors = [Length(each.report.level, norm_of(each.update.values), each.update.size) for each in waiting]
    exacts = [Length(each.report.level, norm_of(each.update.exact), each.update.exact.numel()) for each in waiting]
    return list(zip(clip_factors(vectors, factor), clip_factors(exacts, factor), strict=True))


def norm_of(values: Tensor) -> float:
    """Return the 2-norm of values, computed in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))
