"""FedRTS: masks drawn from a posterior of how useful each entry is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.base import GradientProbe
from hetfl.parts.client_values import client_values
from hetfl.parts.growth.base import Exchange, Growth, zeros_like
from hetfl.pruning.densities import Masks, largest
from hetfl.pruning.gradients import GradientRequest
from hetfl.seeding import derive, seed_torch
from hetfl.types import Report
from hetfl.updates import Update


class Posterior(Growth):
    r"""The mask is drawn by Thompson sampling from a Beta distribution of each entry.

    With :math:`K_l` held entries of weight l, :math:`k_l` of them exchanged, a held entry observes

    .. math:: o_j = (1 - \gamma) [j \in \text{top}_{K_l - k_l} |\theta|]
              + \gamma \sum_k p_k [j \in \text{top}_{K_l - k_l} |\theta_k|],

    and another one :math:`o_j = (1 - \gamma) / 2 + \gamma \sum_k p_k [j \in \text{top}_{k_l} |g_k|]`, with
    :math:`\theta` the mean after the round, :math:`\theta_k` the client's values and :math:`g_k` its gradient at the
    start of the round. Then :math:`a_j \mathrel{+}= \rho o_j`, :math:`b_j \mathrel{+}= \rho (1 - o_j)`, and the mask
    has the :math:`K_l` largest draws from :math:`\text{Beta}(a_j, b_j)`.

    Huang et al.: FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling, NeurIPS 2025 (arXiv 2501.19122).
    Not as in the paper: the server finds a client's largest values in its update.

    Args:
        trust: :math:`\gamma`, weight of the clients' votes.
        rate: :math:`\rho`, weight of an observation.
        samples: of a client's data for its gradient, drawn at random; None: all.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    follows_clients: ClassVar[bool] = True

    def __init__(self, trust: float = 0.5, rate: float = 10.0, samples: int | None = None) -> None:
        if not 0.0 <= trust <= 1.0 or rate <= 0:
            raise ConfigurationError(f"Expected trust in [0, 1] and rate above 0 but got {trust}, {rate}")
        super().__init__(samples)
        self.trust, self.rate = trust, rate
        self.alpha: dict[str, Tensor] = {}
        self.beta: dict[str, Tensor] = {}

    def consult(self, exchange: Exchange, cohort: Sequence[int], probe: GradientProbe) -> None:  # noqa: D102
        self._begun = exchange.copies()
        self._votes, self._updates, self._gradients = zeros_like(self._begun[0]), 0, 0
        for answer in probe.gradients(cohort, GradientRequest(exchange.counts, self.samples, values=False)):
            self._gradients += answer.samples
            for name, sent in answer.sent().items():
                if name in self._votes:
                    self._votes[name] += answer.samples * sent

    def observe(self, exchange: Exchange, update: Update, index: Index, report: Report) -> None:
        """Count the votes of a client's largest values among the held entries."""
        self._updates += report.samples
        for name, values in client_values(self._begun[report.model], update, index).items():
            self._votes[name] += report.samples * self._kept(exchange, name, values)

    def _kept(self, exchange: Exchange, name: str, values: Tensor | None = None) -> Tensor:
        """Return the largest of the held entries, all but those to be exchanged."""
        return exchange.strongest(name, exchange.mask[name], exchange.held(name) - exchange.counts[name], values)

    def chosen(self, exchange: Exchange) -> Masks:  # noqa: D102
        if not self._updates or not self._gradients:  # nobody voted
            return exchange.mask
        return {name: self._draw(exchange, name) for name in exchange.mask}

    def _draw(self, exchange: Exchange, name: str) -> Tensor:
        held = exchange.mask[name]
        alpha = self.alpha.setdefault(name, torch.ones(held.shape, dtype=torch.float64))
        beta = self.beta.setdefault(name, torch.ones(held.shape, dtype=torch.float64))
        server = torch.where(held, self._kept(exchange, name).double(), 0.5)
        voices = torch.where(held, float(self._updates), float(self._gradients))
        observed = (1.0 - self.trust) * server + self.trust * self._votes[name].double() / voices
        alpha += self.rate * observed
        beta += self.rate * (1.0 - observed)
        with torch.random.fork_rng(devices=[]):
            seed_torch(derive(exchange.seed, "posterior", name))
            drawn = torch.distributions.Beta(alpha, beta).sample()
        return largest(drawn, exchange.held(name))

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"alpha": dict(self.alpha), "beta": dict(self.beta)}

    def load_state_dict(self, state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:  # noqa: D102
        self.alpha, self.beta = dict(state["alpha"]), dict(state["beta"])
