"""Power-of-Choice: selects the candidates with the largest loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

from hetfl.arguments import whole
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import highest, proportionally
from hetfl.types import Report
from hetfl.updates import Update

Variant = Literal["pow", "cpow", "rpow"]


class PowerOfChoice(Selection):
    r"""Biased selection of Cho et al. (AISTATS 2022, arXiv 2010.01243).

    d candidates are drawn without replacement, in proportion to their size; the m with the largest loss take part, the
    largest first, ties by id. Their updates should count alike (``HolderMean``), as candidates were drawn by size.

    - ``pow`` (π_pow-d): the loss :math:`F_k(\theta_t)` of the present model on all of a candidate's data.
    - ``cpow`` (π_cpow-d): the same on ``batch`` of its samples, drawn at random.
    - ``rpow`` (π_rpow-d): no client is asked; the mean training loss in the client's last accepted round, and ∞ for a
      client without one.

    The downloads and passes of candidates are charged to the round. A loss of NaN, of a diverged model, counts as ∞.
    With d = m, or with at most m reachable clients, all candidates take part and none is asked, as in
    :class:`~hetfl.selection.SizeWeighted`. With d = N the choice is greedy.

    Args:
        candidates: number d, from m to N.
        clients_per_round: size m of the cohort; with fewer reachable clients, all of these.
        variant: ``pow``, ``cpow`` or ``rpow``.
        batch: samples of a candidate in ``cpow``.

    Raises:
        ConfigurationError: d is below m, the variant is none of the three, or the batch is empty.
    """

    by_size: ClassVar[bool] = True

    def __init__(self, candidates: int, clients_per_round: int = 10, variant: Variant = "pow", batch: int = 64) -> None:
        super().__init__(clients_per_round)
        if whole("candidates", candidates) < clients_per_round:
            raise ConfigurationError(
                f"Expected candidates of at least clients_per_round, {clients_per_round}, but got {candidates}"
            )
        if variant not in get_args(Variant):
            raise ConfigurationError(f"Expected variant among {get_args(Variant)} but got {variant!r}")
        if batch < 1:
            raise ConfigurationError(f"Expected batch of at least 1 sample but got {batch}")
        self.candidates, self.variant, self.batch = candidates, variant, batch
        self.asks_losses = variant != "rpow"
        self.remembered: dict[int, float] = {}

    def setup(self, facts: Facts) -> None:
        """Set the clients' training-set sizes and the seed; forget all losses if the number of clients has changed.

        Raises:
            ConfigurationError: there are more candidates than clients.
        """
        if facts.num_clients != len(self.sizes):
            self.remembered = {}
        super().setup(facts)
        if self.candidates > facts.num_clients:
            raise ConfigurationError(
                f"Expected candidates of at most the number of clients, {facts.num_clients}, but got {self.candidates}"
            )

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        drawn = proportionally(probe.clients, self.sizes, self.candidates, generator(self.seed, "selection", round))
        if len(drawn) <= self.clients_per_round:
            return drawn
        return highest(dict(zip(drawn, self._losses(drawn, probe), strict=True)), self.clients_per_round)

    def _losses(self, clients: list[int], probe: Probe) -> list[float]:
        if self.variant == "rpow":
            return [self.remembered.get(client, math.inf) for client in clients]
        return probe.losses(clients, self.batch if self.variant == "cpow" else None)

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        if self.variant == "rpow":
            self.remembered[report.client] = report.loss

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"remembered": dict(self.remembered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.remembered = dict(state["remembered"])
