"""A mean that leaves out clients whose earlier updates were worth little."""

from __future__ import annotations

from hetfl.aggregators.holder_mean import Denominator, HolderMean
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value import Reputation, Value, Valued


class ValueFilter(Valued, HolderMean):
    r"""Mean by samples over holders, without the clients whose value is small.

    .. math:: w_k = n_k\, [v_k \ge \text{least} \cdot \bar v]

    with :math:`\bar v` the mean of all known values above 0, and values as in
    :class:`~hetfl.aggregators.ValueMean`: those of earlier rounds; a client without a value is kept. A client that is
    left out still trains and is still measured, so it may return; its update counts as accepted, and its residual
    moves. An entry that only left-out clients hold keeps its value.

    Column: ``value/left_out``, the number of the round's updates that were left out.

    Args:
        value: the measure; None: :class:`~hetfl.value.Reputation`.
        least: smallest value relative to the mean, in (0, 1].
        denominator: as in :class:`~hetfl.aggregators.ValueMean`; with ``cohort`` the divisor has the weights of those
            kept.

    Raises:
        ConfigurationError: ``least`` is not in (0, 1], or ``denominator`` is unknown.
    """

    def __init__(self, value: Value | None = None, least: float = 0.5, denominator: Denominator = "holders") -> None:
        super().__init__(denominator)
        if not 0.0 < least <= 1.0:
            raise ConfigurationError(f"Expected least in (0, 1] but got {least}")
        self.least, self._left_out = least, 0
        self.keep_values(value or Reputation())

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self.value.setup(facts)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self.value.begin_round(round, lr)
        self._mean, self._left_out = self.mean_value(), 0

    def kept(self, client: int) -> bool:
        """Return whether a client's update is added up in this round."""
        return self.values.get(client, self._mean) >= self.least * self._mean

    def weight(self, report: Report) -> float:
        """Return the samples of a client that is kept, and 0 for others."""
        return float(report.samples) if self.kept(report.client) else 0.0

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        super().update(update, index, report)
        self.value.observe(update, index, report)
        self._left_out += not self.kept(report.client)

    def columns(self) -> dict[str, float]:
        """Return the smallest and the largest value, and the number of updates that were left out."""
        return {**self.value_columns(), "value/left_out": float(self._left_out)}
