"""The cosine of a client's update and the mean of the others'."""

from __future__ import annotations

from collections import defaultdict

from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value
from hetfl.value.cohort import Cohort, cosine


class GradientCosine(Value):
    r"""The cosine of a client's update and the mean of all others', over the entries that another client holds, too.

    .. math:: v_k = \cos(u_k, \bar u_{-k}), \qquad
        \bar u_{-k, j} = \frac{1}{|H_j| - 1} \sum_{i \in H_j, i \ne k} u_{i, j}

    The client itself is left out of the mean, which would otherwise favour clients of small cohorts. A client that
    shares no entry, or whose update or mean is zero, has the value 0. With several global models, the others
    are those that train the same model, and a client that trains several has the mean. Needs decoded updates, and leaks
    nothing beyond them. A client can raise its value by predicting the others' mean, so do not pay by it.

    Args:
        leave_out: whether the client is left out of the mean.
    """

    def __init__(self, leave_out: bool = True) -> None:
        self.leave_out = leave_out
        self.cohorts: dict[int, Cohort] = {}  # by global model, the updates of the round
        self._values: dict[int, float] | None = None  # of the round, once they are known

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._parameters, self.cohorts = facts.parameters, {}

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._clear()
        self._values = None

    def observe(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        if report.model not in self.cohorts:
            self.cohorts[report.model] = Cohort(self._parameters)
        self.cohorts[report.model].add(update, index, report)

    def of_round(self) -> dict[int, float]:  # noqa: D102
        if self._values is None:
            self._values = self._measured()
        return dict(self._values)

    def _measured(self) -> dict[int, float]:
        values = defaultdict[int, list[float]](list)
        for cohort in self.cohorts.values():
            for client, value in self._cosines(cohort).items():
                values[client].append(value)
        return {client: sum(each) / len(each) for client, each in values.items()}

    def _cosines(self, cohort: Cohort) -> dict[int, float]:
        """Return the values of the clients that have trained one global model."""
        total_D, holders_D = cohort.sums({member.report.client: 1.0 for member in cohort.members})
        values, own = {}, float(self.leave_out)
        for member in cohort.members:
            positions = member.entries.positions(total_D)
            others = holders_D[positions] - own
            shared = others > 0
            mean = (total_D[positions] - own * member.vector)[shared] / others[shared]
            values[member.report.client] = cosine(member.vector[shared], mean)
        return values

    def end_round(self, round: int) -> None:
        """Forget the round's updates."""
        self._clear()

    def _clear(self) -> None:
        for cohort in self.cohorts.values():
            cohort.clear()
