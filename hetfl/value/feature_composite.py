"""How far a client's features spread, less how far their mean is from that of all clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.question import ClientProbe
from hetfl.value.data_value import DataValue
from hetfl.value.features import Moments, mean_and_variance, valid_moments


def composite(of_client: Tensor, of_all: Tensor, weight: float) -> float:
    r"""Return the value of a client.

    Args:
        of_client: its answer to :class:`~hetfl.value.features.Moments`, shape (1 + 2 d,).
        of_all: the sum of the answers of all clients.
        weight: w.
    """
    (mean_d, variance_d), (all_mean_d, all_variance_d) = mean_and_variance(of_client), mean_and_variance(of_all)
    scale_d = all_variance_d.where(all_variance_d > 0, 1.0)
    return float((weight * variance_d - (1.0 - weight) * (mean_d - all_mean_d).square()).div(scale_d).mean())


class FeatureComposite(DataValue):
    r"""A composite of the means and variances of a client's features, in units of their variance over all clients.

    .. math:: v_k = \frac{1}{d} \sum_{f=1}^{d}
        \frac{w\, \sigma_{k,f}^2 - (1 - w) (\mu_{k,f} - \mu_f)^2}{\sigma_f^2}

    Features are a random projection of the inputs (:func:`~hetfl.value.features.projected`), and :math:`\mu_f`,
    :math:`\sigma_f^2` are over the samples of all clients that were asked so far. A client whose data is like that of
    all has w; one with few kinds of samples, or with samples far from the others', has less. It does not look at
    labels, and its own copies do not change it.

    Needs inputs of floating-point numbers, and clients that answer questions. Leaks the number of samples, and sums of
    the features and of their squares, 1 + 2 d numbers, once. Costs one pass over the inputs without the net.

    Args:
        features: d.
        weight: w, in [0, 1].

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, features: int = 16, weight: float = 0.5) -> None:
        super().__init__()
        if features < 1 or not 0.0 <= weight <= 1.0:
            raise ConfigurationError(f"Expected features of at least 1, weight in [0, 1] but got {features}, {weight}")
        self.features, self.weight = features, weight
        self.sums: dict[int, list[float]] = {}

    def setup(self, facts: Facts) -> None:
        """Set the seed and the number of clients; with another number, no client has answered."""
        if facts.num_clients != self._num_clients:
            self.sums = {}
        super().setup(facts)

    def measured(self, clients: Sequence[int], probe: ClientProbe) -> dict[int, float]:
        """Return the values of all clients that have answered so far, as the means of all have changed."""
        answers = probe.answers(clients, Moments(self.features, self.seed))
        self.sums |= {client: numbers.tolist() for client, numbers in answers.items() if valid_moments(numbers)}
        sums = {client: torch.tensor(self.sums[client], dtype=torch.float64) for client in sorted(self.sums)}
        if not sums:
            return {}
        total = torch.stack(list(sums.values())).sum(0)
        return {client: composite(each, total, self.weight) for client, each in sums.items()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self.sums = {client: list(sums) for client, sums in state["sums"].items()}
