"""Measures that compare models of coalitions of a round's clients on the server's data."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.value.base import Value
from hetfl.value.cohort import Cohort

Metric = Literal["score", "loss"]

WORST = -1e9
"""The least worth of a coalition, and that of one whose model has no finite score or loss."""


class CoalitionValue(Value):
    r"""Base class of measures by the models of coalitions P of the round's clients.

    .. math:: \theta_{P, j} = \theta_j + \frac{\sum_{k \in P \cap H_j} n_k u_{k,j}}{\sum_{k \in P \cap H_j} n_k}

    with :math:`\theta` the global model at the start of the round; an entry that nobody in P holds keeps its value. The
    worth of a coalition is the headline score, or minus the loss, of its model on the server's data; static norm layers
    use the statistics of each batch. A worth below -1e9, or one that is not finite, counts as -1e9: the update of one
    client may be so large that the model overflows. Needs decoded updates and ``data.server_fraction`` above 0; clients
    send nothing for it.

    Args:
        metric: ``score``: the objective's headline, turned so that larger is better; ``loss``: minus the loss.

    Raises:
        ConfigurationError: ``metric`` is neither.
    """

    reads_server_data = True

    def __init__(self, metric: Metric = "score") -> None:
        self.metric = choice("metric", metric, Metric)
        self._values: dict[int, float] | None = None

    def setup(self, facts: Facts) -> None:
        """Set the model and the server's data.

        Raises:
            ConfigurationError: there is no way to measure a model on the server's data.
        """
        if facts.utility is None:
            raise ConfigurationError(
                f"Expected data.server_fraction above 0 for {self.describe()}, which measures models on the server's "
                "data, but got 0"
            )
        self.utility: Callable[[Mapping[str, Tensor]], tuple[float, float]] = facts.utility
        self.parameters, self.seed, self.cohort = facts.parameters, facts.seed, Cohort(facts.parameters)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self.round, self._values = round, None
        self.cohort.clear()
        self._begun = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Note a client's update.

        Raises:
            ConfigurationError: it is one of another global model than the first, whose coalitions are measured.
        """
        if report.model:
            raise ConfigurationError(
                f"Expected one global model for {type(self).__name__} but got an update of model {report.model}"
            )
        self.cohort.add(update, index, report)

    def worth(self, coalition: frozenset[int]) -> float:
        """Return the worth of a coalition of members of the cohort, by number."""
        weights = dict.fromkeys((member.report.client for member in self.cohort.members), 0.0)
        for number in coalition:
            report = self.cohort.members[number].report
            weights[report.client] = float(report.samples)
        total_D, holders_D = self.cohort.sums(weights)
        step_D = (total_D / holders_D.where(holders_D > 0, 1.0)).where(holders_D > 0, 0.0)
        steps = self.cohort.whole.layout.views(step_D)
        model = {name: begun + steps[name].to(begun) for name, begun in self._begun.items()}
        score, loss = self.utility(model)
        worth = score if self.metric == "score" else -loss
        return max(worth, WORST) if math.isfinite(worth) else WORST

    def of_round(self) -> dict[int, float]:  # noqa: D102
        if self._values is None:
            self.cohort.members.sort(key=lambda member: member.report.client)  # so that their order does not count
            clients = [member.report.client for member in self.cohort.members]
            self._values = dict(zip(clients, self.members_values(), strict=True)) if clients else {}
        return dict(self._values)

    @abstractmethod
    def members_values(self) -> list[float]:
        """Return the value of every member of the cohort, in its order."""

    def end_round(self, round: int) -> None:
        """Forget the round's updates."""
        self.of_round()
        self.cohort.clear()


class LeaveOneOut(CoalitionValue):
    r"""What the round's model loses without a client: :math:`v_k = v(S) - v(S \setminus \{k\})`.

    It takes one evaluation per client. Small differences drown in the noise of a small server set.
    """

    def members_values(self) -> list[float]:  # noqa: D102
        everyone = frozenset(range(len(self.cohort.members)))
        whole = self.worth(everyone)
        return [whole - self.worth(everyone - {number}) for number in range(len(everyone))]
