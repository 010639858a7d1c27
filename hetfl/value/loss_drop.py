"""The decrease of a client's training loss."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value

Since = Literal["report", "start"]
"""The loss that a client's training loss is compared with."""


class LossDrop(Value):
    r"""The decrease of a client's training loss.

    .. math:: v_k = \ell_k(t') - \ell_k(t) \quad (\text{since: report}), \qquad
        v_k = F_k(\theta_t) - \ell_k(t) \quad (\text{since: start})

    with :math:`\ell_k(t)` the mean training loss that client k reports in round t, t' its previous round, and
    :math:`F_k(\theta_t)` the loss of the downloaded model on all of its data.

    ``report`` costs nothing. It covers all rounds since the client's previous one, and a client that has never reported
    has no value. If the client's level has changed, it includes the difference between the levels, as in FedMP.
    ``start`` compares losses at one level within one round; it needs an aggregator that asks clients for losses, which
    costs a pass over their data. Noisy labels look valuable to both, because a net can memorise them.

    Args:
        since: ``report`` or ``start``.

    Raises:
        ConfigurationError: ``since`` is neither.
    """

    def __init__(self, since: Since = "report") -> None:
        self.since = choice("since of LossDrop", since, Since)
        self._last: dict[int, float] = {}  # by client, the mean loss of its last report
        self._num_clients = 0
        self._round: defaultdict[int, list[tuple[float, float, int]]] = defaultdict(list)

    def setup(self, facts: Facts) -> None:
        """Set the number of clients; if it has changed, no client has reported yet."""
        if facts.num_clients != self._num_clients:
            self._num_clients, self._last = facts.num_clients, {}

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._round.clear()

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Note a client's losses.

        Raises:
            ConfigurationError: the loss at the start is needed, and clients were not asked for it.
        """
        if self.since == "start" and report.initial_loss is None:
            raise ConfigurationError(
                "Expected an aggregator that asks clients for their losses, such as hetfl.aggregators.QFedAvg, for "
                "LossDrop(since='start'), but got one that does not"
            )
        initial = 0.0 if report.initial_loss is None else report.initial_loss
        self._round[report.client].append((report.loss, initial, report.samples))

    def of_round(self) -> dict[int, float]:  # noqa: D102
        if self.since == "start":
            return {client: _mean(reports, 1) - _mean(reports, 0) for client, reports in self._round.items()}
        known = self._round.keys() & self._last.keys()
        return {client: self._last[client] - _mean(self._round[client], 0) for client in sorted(known)}

    def end_round(self, round: int) -> None:  # noqa: D102
        self._last |= {client: _mean(reports, 0) for client, reports in self._round.items()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._last = dict(state["last"])


def _mean(reports: list[tuple[float, float, int]], column: int) -> float:
    """Return the mean of a loss over the samples of a client's reports, one for each model that it trained."""
    samples = sum(report[2] for report in reports)
    return sum(report[column] * report[2] for report in reports) / samples
