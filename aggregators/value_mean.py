"""Mean over holders, weighted by what clients' earlier updates were worth."""

from __future__ import annotations

from collections.abc import Mapping

from hetfl.aggregators.holder_mean import Denominator, HolderMean
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value import Reputation, UsesValues, Value


class ValueMean(UsesValues, HolderMean):
    r"""Mean over the holders of each entry, weighted by the values of the clients.

    .. math:: \Delta_j = \frac{\sum_{k \in H_j} w_k u_{k,j}}{\sum_{k \in H_j} w_k}, \qquad
        w_k = \max(v_k, \text{floor} \cdot \bar v)

    The value of a round weighs the client's next update, so no update weighs itself. Negative values count as 0;
    :math:`\bar v` is the mean of all known values above 0. A client without a value weighs as the mean of the others;
    before there are values, clients weigh by their samples. The number of samples counts once: with values that already
    grow with it, leave ``by_samples`` false.

    Args:
        value: the measure; None: :class:`~hetfl.value.Reputation`.
        floor: smallest weight, relative to the mean.
        by_samples: whether values are multiplied by the clients' samples.
        denominator: ``holders``: the sum of weights is over the holders of an entry; ``cohort``: over all clients.

    Raises:
        ConfigurationError: ``floor`` is not in (0, 1], or ``denominator`` is unknown.
    """

    def __init__(
        self,
        value: Value | None = None,
        floor: float = 1e-3,
        by_samples: bool = False,
        denominator: Denominator = "holders",
    ) -> None:
        super().__init__(denominator)
        if not 0.0 < floor <= 1.0:
            raise ConfigurationError(f"Expected floor in (0, 1] but got {floor}")
        self.use(value or Reputation())
        self.floor, self.by_samples = floor, by_samples

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._mean = mean_above_zero(self.values)

    def weight(self, report: Report) -> float:
        """Return the weight of a client: by the values of earlier rounds."""
        if not self._mean:
            return float(report.samples)
        value = max(self.values.get(report.client, self._mean), self.floor * self._mean)
        return value * report.samples if self.by_samples else value

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        super().update(update, index, report)
        self.observe(update, index, report)

    def columns(self) -> dict[str, float]:
        """Return the smallest and the largest value of a client, if there are any."""
        return ends(self.values)


def mean_above_zero(values: Mapping[int, float]) -> float:
    """Return the mean of the values above 0; 0 if there are none."""
    above = [value for value in values.values() if value > 0.0]
    return sum(above) / len(above) if above else 0.0


def ends(values: Mapping[int, float]) -> dict[str, float]:
    """Return the columns of the smallest and the largest value of a client, if there are any."""
    known = values.values()
    return {"value/lowest": min(known), "value/highest": max(known)} if known else {}
