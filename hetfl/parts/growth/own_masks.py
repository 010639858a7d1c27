"""FedSpa: every client has a mask of its own, which follows its own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from hetfl.layout import Index
from hetfl.parts.base import GradientProbe
from hetfl.parts.client_masks import ClientMasks
from hetfl.parts.client_values import client_values
from hetfl.parts.growth.base import Exchange, Growth
from hetfl.pruning.densities import Masks
from hetfl.pruning.gradients import GradientRequest
from hetfl.types import Report
from hetfl.updates import Update


class OwnMasks(Growth):
    """Every client keeps a mask of its own, and exchanges entries of it whenever it takes part in an exchange.

    It drops the smallest of the values that it trained, and grows the entries of its largest gradients at the start of
    the round. All clients begin with the common mask. The server changes no mask; entries outside of a client's mask
    keep the values that other clients gave them.

    Huang, Liu, Shen, He, Lin, Tao: Achieving Personalized Federated Learning with Sparse Local Models, 2022 (arXiv
    2201.11380). As in the paper: a mask of constant density per layer, drop by magnitude, growth by gradient, the
    cosine. Not as in the paper: the mean is over the holders of an entry by default; the aggregator's ``denominator``
    sets it.
    """

    personal: ClassVar[bool] = True
    follows_clients: ClassVar[bool] = True

    def __init__(self, samples: int | None = None) -> None:
        super().__init__(samples)
        self._masks = ClientMasks()
        self._begun: Sequence[Mapping[str, Tensor]] = []  # by model
        self._gradients: dict[int, dict[str, Tensor]] = {}

    def of_client(self, client: int) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def consult(self, exchange: Exchange, cohort: Sequence[int], probe: GradientProbe) -> None:  # noqa: D102
        self._begun = exchange.copies()
        request = GradientRequest(exchange.counts, self.samples, values=False)
        self._gradients = {
            answer.client: {name: gradient.abs() for name, gradient in answer.tensors().items()}
            for answer in probe.gradients(cohort, request)
        }

    def observe(self, exchange: Exchange, update: Update, index: Index, report: Report) -> None:
        """Exchange entries of the client's mask, by the values that it trained."""
        scores = self._gradients.pop(report.client, None)
        if scores is not None:
            values = client_values(self._begun[report.model], update, index)
            mask = self._masks.get(report.client, exchange.mask)
            self._masks[report.client] = replace(exchange, mask=mask).applied(scores, values)

    def chosen(self, exchange: Exchange) -> Masks:  # noqa: D102
        return exchange.mask

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"masks": self._masks.packed()}

    def load_state_dict(self, state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:  # noqa: D102
        self._masks = ClientMasks.unpacked(state["masks"], shapes)
