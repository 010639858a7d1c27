"""FedDST: every client exchanges entries by its own gradient, and the server keeps the strongest of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hetfl.layout import Index
from hetfl.parts.base import AskingProbe
from hetfl.parts.growth.base import Exchange, Growth
from hetfl.pruning.densities import Masks
from hetfl.pruning.gradients import GradientRequest
from hetfl.types import Report
from hetfl.updates import Update


class ByClients(Growth):
    """Every client drops and grows by its own gradient, and trains with its own mask in this round.

    At the end of the round the server keeps, of the union of the clients' masks, the entries of the largest absolute
    mean values, in every weight as many as before.

    Bibikar, Vikalo, Wang, Chen: Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning
    Better, AAAI 2022 (arXiv 2112.09824). As in the paper: the union and the pruning by magnitude. Not as in the paper:
    a client exchanges entries before it trains in the round, not in its last epoch, so that new entries are trained
    before the server judges them; the share falls with a cosine, which the published code computes and does not use.
    """

    def __init__(self, samples: int | None = None) -> None:
        super().__init__(samples)
        self._masks: dict[int, Masks] = {}
        self._present: list[Masks] = []

    def consult(self, exchange: Exchange, cohort: Sequence[int], probe: AskingProbe) -> None:  # noqa: D102
        self._masks, self._present, models = {}, [], exchange.copies()
        for answer in probe.gradients(cohort, GradientRequest(exchange.counts, self.samples, values=False)):
            sizes = {name: gradient.abs() for name, gradient in answer.tensors().items()}
            self._masks[answer.client] = exchange.applied(sizes, models[probe.model(answer.client)])

    def of_client(self, client: int) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def observe(self, exchange: Exchange, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        if report.client in self._masks:
            self._present.append(self._masks[report.client])

    def chosen(self, exchange: Exchange) -> Masks:  # noqa: D102
        present, self._masks, self._present = self._present, {}, []
        if not present:
            return exchange.mask
        union = {name: torch.stack([each[name] for each in present]).any(0) for name in exchange.mask}
        return {name: exchange.strongest(name, each, exchange.held(name)) for name, each in union.items()}
