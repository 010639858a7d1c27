"""Selection of the clients whose earlier updates were worth most."""

from __future__ import annotations

import math

import torch

from hetfl.errors import ConfigurationError
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import highest, uniformly
from hetfl.value import Reputation, UsesValues, Value


class ByValue(UsesValues, Selection):
    """The m reachable clients with the highest values of earlier rounds, of which a share is drawn uniformly.

    First the drawn clients are chosen, ``explore`` of m, then the highest of the others, ties by id. The drawn clients
    have random places in the cohort, as a schedule may take only its first clients. A client without a value has the
    mean of the known ones; before there are values, all clients are drawn. Without drawn clients, the first cohort
    could take part forever, as nobody else ever gets a value.

    Args:
        clients_per_round: size m of the cohort; with fewer reachable clients, all of these.
        value: the measure; None: :class:`~hetfl.value.Reputation`.
        explore: share of m that is drawn, in [0, 1]; their number is rounded up.

    Raises:
        ConfigurationError: ``explore`` is not in [0, 1].
    """

    def __init__(self, clients_per_round: int = 10, value: Value | None = None, explore: float = 0.2) -> None:
        super().__init__(clients_per_round)
        if not 0.0 <= explore <= 1.0:
            raise ConfigurationError(f"Expected explore in [0, 1] but got {explore}")
        self.use(value or Reputation())
        self.explore = explore

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        size, random = self.clients_per_round, generator(self.seed, "selection", round)
        if not self.values or len(probe.clients) <= size:
            return uniformly(probe.clients, size, random)
        drawn = uniformly(probe.clients, math.ceil(self.explore * size - 1e-9), random)
        mean = sum(self.values.values()) / len(self.values)
        left = set(probe.clients).difference(drawn)
        best = iter(highest({client: self.values.get(client, mean) for client in left}, size - len(drawn)))
        places, explored = set(torch.randperm(size, generator=random)[: len(drawn)].tolist()), iter(drawn)
        return [next(explored if place in places else best) for place in range(size)]
