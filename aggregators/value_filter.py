"""A mean that leaves out clients whose earlier updates were worth little."""

from __future__ import annotations

from collections.abc import Mapping

from hetfl.aggregators.holder_mean import Denominator, HolderMean
from hetfl.aggregators.value_mean import ends, mean_above_zero
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value import Reputation, UsesValues, Value


class ValueFilter(UsesValues, HolderMean):
    r"""Mean by samples over holders, without the clients whose value is small.

    .. math:: w_k = n_k\, [v_k \ge \text{least} \cdot \bar v]

    with :math:`\bar v` the mean of all known values above 0. Values are those of earlier rounds, as in
    :class:`~hetfl.aggregators.ValueMean`; a client without a value is kept, and so are all clients if no value is above
    0. A client that is left out still trains and is still measured, so it may return; its update counts as accepted,
    and its residual moves. An entry that only left-out clients hold keeps its value.

    Column: ``value/left_out``, the number of the round's updates that were left out. In ``values.csv`` the measure
    ``left_out`` is 1 for a client that was left out in the round, and 0 for one that was not.

    Args:
        value: the measure; None: :class:`~hetfl.value.Reputation`.
        least: smallest value relative to the mean, in (0, 1].
        denominator: ``holders``: the sum of weights is over the holders of an entry; ``cohort``: over all kept clients.

    Raises:
        ConfigurationError: ``least`` is not in (0, 1].
    """

    def __init__(self, value: Value | None = None, least: float = 0.5, denominator: Denominator = "holders") -> None:
        super().__init__(denominator)
        if not 0.0 < least <= 1.0:
            raise ConfigurationError(f"Expected least in (0, 1] but got {least}")
        self.use(value or Reputation())
        self.least, self._mean = least, 0.0
        self._left_out: dict[int, float] = {}  # by client of the round: 1 or 0

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._left_out, self._mean = {}, mean_above_zero(self.values)

    def kept(self, client: int) -> bool:
        """Return whether a client's update is added up in this round."""
        return not self._mean or self.values.get(client, self._mean) >= self.least * self._mean

    def weight(self, report: Report) -> float:
        """Return the samples of a client that is kept, and 0 for others."""
        return float(report.samples) if self.kept(report.client) else 0.0

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        super().update(update, index, report)
        self._left_out[report.client] = float(not self.kept(report.client))
        self.observe(update, index, report)

    def columns(self) -> dict[str, float]:
        """Return the smallest and the largest value, and the number of updates that were left out."""
        return {**ends(self.values), "value/left_out": sum(self._left_out.values())}

    def client_values(self) -> dict[str, Mapping[int, float]]:  # noqa: D102
        return {**super().client_values(), "left_out": self._left_out}
