"""Steering a threshold so that the uploads of a run meet a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any, NamedTuple

from hetfl.compression.calibration import PILE
from hetfl.compression.message_size import affordable_count
from hetfl.errors import ConfigurationError
from hetfl.updates import Update
from hetfl.wire import dense_size

MOST = 4.0
"""A client sends at most this many times the entries that are planned for it."""

OUTLYING = 10.0
"""A reported ‖Δ‖₁ per entry counts as at most this many times the cohort's median."""


class Limit(NamedTuple):
    """What a client may send of its vector: entries of at least ``threshold``, and at most the ``most`` largest."""

    threshold: float
    most: int


@dataclass
class BudgetState:
    """What a budget's controller has learnt, and the numbers of the present round that clients need.

    Attributes:
        rounds: number t of closed rounds.
        spent: bytes, or entries, of all accepted updates.
        updates: number of accepted updates.
        entries: length of all accepted updates' vectors together.
        overhead: bytes of all accepted updates that are not of entries: headers and exact blocks.
        cohort: m, accepted updates of a round, smoothed.
        cost: b, bytes of an entry on the wire, smoothed; 0: no entry was sent yet.
        log_norm: a = ln(mean ‖Δ‖₁ / γ_t), smoothed; None: no entry was sent yet.
        log_pile: ln φ, with φ = entries sent times λ over ‖Δ‖₁, smoothed.
        log_threshold: ln(λ_t / f_t); None: not known yet, so each client takes its threshold from its own ‖Δ‖₁.
        law: f_t.
        planned: k_t, entries of a mean update; not used while clients take their own thresholds.
        left: R, what is left for entries.
        share: share of R that one update of this round should take.
        mean_share: the mean of ``share`` over the rounds that are left.
        length: number of rounds that the run was planned to have when its last round began; 0: no round has begun.
    """

    rounds: int = 0
    spent: float = 0.0
    updates: int = 0
    entries: int = 0
    overhead: float = 0.0
    cohort: float = 0.0
    cost: float = 0.0
    log_norm: float | None = None
    log_pile: float = math.log(PILE)
    log_threshold: float | None = None
    law: float = 1.0
    planned: float = 0.0
    left: float = 0.0
    share: float = 0.0
    mean_share: float = 0.0
    length: int = 0


class _Report(NamedTuple):
    """An accepted update in numbers."""

    delta_norm: float
    size: int
    sent: int
    num_bytes: int
    overhead: int


class BudgetControl:
    r"""Moves a threshold slowly, so that uploads in proportion to γ_t / f_t use up a budget.

    With error feedback a round sends about :math:`n = φ ‖Δ‖_1 / λ` entries, and ‖Δ‖₁ is proportional to γ_t. With
    λ_t = λ_0 f_t, b bytes of an entry, m updates of a round and R bytes left, the rest of the run uses R if

    .. math:: λ_t = φ e^a m b f_t G_t / R, \quad G_t = \sum_{s ≥ t} γ_s / f_s, \quad a = \ln(‖Δ‖_1 / γ_t).

    φ, a, b and m are measured and smoothed with the weight β = max(0.1, 1/(t + 2)), φ from round 3 on. ln(λ_t / f_t)
    moves towards its goal by at most 0.04 + 0.5/t at the beginning of round t: a threshold that falls releases old
    residuals late, where they help least. A client sends at most four times the planned number of entries of a mean
    update, :math:`k_t = R γ_t / (f_t m b G_t)`; a small sub-model may send all of its entries. In the first round a
    client takes the threshold :math:`0.3 ‖Δ‖_1 / k` from its own delta. Once nothing is left, nothing is sent.

    Clients report ‖Δ‖₁. Divided by the number of entries, it counts as at most ten times the cohort's median.

    Args:
        amount: bytes of all accepted updates of the run, above 1; or a mean density, in (0, 1]: the share of all
            entries of these updates that is sent.

    Raises:
        ConfigurationError: ``amount`` is out of range.
    """

    def __init__(self, amount: float) -> None:
        if not 0 < amount < math.inf:
            raise ConfigurationError(f"Expected a budget above 0, in bytes or as a mean density, but got {amount}")
        self.amount, self.by_density = float(amount), amount <= 1
        self.state = BudgetState()
        self._goals: list[float] = []  # G_t
        self._lrs: Sequence[float] = ()
        self._laws: Sequence[float] = ()
        self._reports: list[_Report] = []

    @property
    def unit(self) -> str:
        """What is budgeted: bytes or entries."""
        return "entries" if self.by_density else "bytes"

    @property
    def threshold(self) -> float | None:
        """λ_t in the present round; None: clients take their own."""
        state = self.state
        return None if state.log_threshold is None else math.exp(state.log_threshold) * state.law

    def plan(self, lrs: Sequence[float], laws: Sequence[float], cohort: int) -> None:
        """Learn the schedule of a run.

        Args:
            lrs: γ_t of every round.
            laws: f_t = λ_t / λ_0 of every round.
            cohort: m, number of clients of a round.

        Raises:
            ConfigurationError: the headers of the messages alone cost more, or no round has a step size above 0.
        """
        headers = len(lrs) * cohort * dense_size(0)
        if not self.by_density and self.amount <= headers:
            raise ConfigurationError(
                f"Expected a budget above the {headers} bytes of the headers of {len(lrs)} rounds of {cohort} updates "
                f"but got {self.amount:g}"
            )
        self._lrs, self._laws = lrs, laws
        efforts = [self._effort(t) for t in range(len(lrs))]
        if efforts and sum(efforts) == 0:
            raise ConfigurationError("Expected a learning rate above 0 in some round, for a budget, but got none")
        self._goals = [math.fsum(efforts[t:]) for t in range(len(efforts))]
        self.state.cohort = self.state.cohort or float(cohort)

    def _effort(self, t: int) -> float:
        """Return γ_t / f_t, to which the planned entries of a round are proportional."""
        return self._lrs[t] / self._laws[t] if self._lrs[t] > 0 and self._laws[t] > 0 else 0.0

    def begin_round(self) -> None:
        """Set the numbers of a round that clients need.

        Raises:
            ConfigurationError: the run has no last round, or more rounds than were planned; or rounds were added to a
                run that has spent its budget.
        """
        state, t, rounds = self.state, self.state.rounds, len(self._goals)
        if not rounds:
            raise ConfigurationError("Expected a number of rounds (trainer.max_epochs) for a budget but got none")
        if t >= rounds:
            raise ConfigurationError(
                f"Expected at most {rounds} rounds, as they were planned for the budget, but got round {t}"
            )
        goal = self._goals[t]
        state.law, state.left = self._laws[t], self._left(rounds - t)
        if 0 < state.length < rounds and state.left <= 0:
            raise ConfigurationError(
                f"Expected a budget of more than {state.spent:g} {self.unit}, which are spent, for rounds {t + 1} to "
                f"{rounds} but got {self.amount:g}: nothing would be sent"
            )
        state.length = rounds
        state.share = self._effort(t) / (state.cohort * goal) if goal > 0 else 0.0
        state.mean_share = 1 / (state.cohort * (rounds - t))
        if state.log_norm is None:
            return
        state.planned = state.left * state.share / state.cost
        if state.left <= 0 or goal <= 0:
            return
        aim = state.log_pile + state.log_norm + math.log(state.cohort * state.cost * goal / state.left)
        step = 0.04 + 0.5 / t if t else math.inf
        previous = aim if state.log_threshold is None else state.log_threshold
        state.log_threshold = previous + min(max(aim - previous, -step), step)

    def _left(self, rounds: int) -> float:
        """Return R: what the rest of the run may use for entries."""
        state = self.state
        if self.by_density:
            length = state.entries / state.updates if state.updates else 0.0
            return self.amount * (state.entries + state.cohort * length * rounds) - state.spent
        overhead = state.overhead / state.updates if state.updates else dense_size(0)
        return self.amount - state.spent - overhead * state.cohort * rounds

    def limit(self, size: int, itemsize: float, delta_norm: float) -> Limit:
        """Return what a client may send in the present round.

        Args:
            size: D, entries of its vector.
            itemsize: bytes of a value on the wire, a part of one for codes.
            delta_norm: its ‖Δ‖₁.

        Raises:
            ConfigurationError: there is no round.
        """
        state = self.state
        if not state.mean_share:
            raise ConfigurationError("Expected the rounds of a run for a budget but got a vector outside of a run")
        if state.log_norm is None:
            planned = self._first_count(size, itemsize)
            threshold = PILE * delta_norm / planned if planned > 0 else math.inf
        else:
            planned = state.planned
            threshold = math.inf if self.threshold is None else self.threshold
        most = math.ceil(MOST * max(0.0, planned))
        return Limit(threshold if most else math.inf, most)

    def _first_count(self, size: int, itemsize: float) -> float:
        """Return the planned entries of an update while no update has been seen."""
        state = self.state
        if self.by_density:
            return self.amount * size * state.share / state.mean_share
        mean = max(0.0, state.left * state.mean_share)
        return affordable_count(size, mean + dense_size(0), itemsize) * state.share / state.mean_share

    def observe(self, update: Update, num_bytes: int, delta_norm: float) -> None:
        """Learn from an accepted update.

        Args:
            update: what the server decoded.
            num_bytes: length of its message.
            delta_norm: ‖Δ‖₁ as the client reports it.
        """
        overhead = dense_size(0) + update.exact.numel() * update.exact.element_size()
        self._reports.append(_Report(delta_norm, update.size, update.num_sent, num_bytes, overhead))

    def end_round(self) -> None:
        """Learn from all accepted updates of a round together."""
        state, reports = self.state, self._reports
        lr = self._lrs[state.rounds]
        weight = max(0.1, 1 / (state.rounds + 2))
        state.cohort = max(1.0, (1 - weight) * state.cohort + weight * len(reports))
        sent = sum(report.sent for report in reports)
        used = sum(report.num_bytes - report.overhead for report in reports)
        state.spent += sent if self.by_density else sum(report.num_bytes for report in reports)
        state.updates += len(reports)
        state.entries += sum(report.size for report in reports)
        state.overhead += sum(report.overhead for report in reports)
        norm = math.fsum(_bounded(reports))
        if sent:
            cost = 1.0 if self.by_density else max(used / sent, 1 / 64)
            state.cost = (1 - weight) * state.cost + weight * cost if state.cost else cost
        if norm > 0 and lr > 0 and state.cost:
            seen = math.log(norm / len(reports) / lr)
            state.log_norm = seen if state.log_norm is None else (1 - weight) * state.log_norm + weight * seen
            if state.rounds >= 3 and self.threshold is not None:
                self._learn_pile(sent * self.threshold / norm, weight)
        state.rounds += 1
        self._reports = []

    def _learn_pile(self, pile: float, weight: float) -> None:
        """Smooth ln φ; one round moves it as if it had been off by a factor of e at most."""
        old = self.state.log_pile
        seen = min(max(math.log(pile), old - 1), old + 1) if pile > 0 else old - 1
        self.state.log_pile = (1 - weight) * old + weight * seen

    def columns(self) -> dict[str, float]:
        """Return what was planned to be used by now, and what was used."""
        state, t = self.state, self.state.rounds
        share = 1 - (self._goals[t] / self._goals[0] if t < len(self._goals) else 0.0)
        total = self.amount
        if self.by_density:
            mean = state.entries / t if t else 0.0
            total *= mean * len(self._goals)
        return {f"budget/planned_{self.unit}": total * share, f"budget/spent_{self.unit}": state.spent}

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain types."""
        return {**asdict(self.state), "reports": [list(report) for report in self._reports]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        values = dict(state)
        self._reports = [_Report(*report) for report in values.pop("reports")]
        self.state = BudgetState(**values)


def _bounded(reports: Sequence[_Report]) -> list[float]:
    """Return ‖Δ‖₁ of all reports; per entry at most ten times the median."""
    if not reports:
        return []
    usual = median_low(report.delta_norm / max(1, report.size) for report in reports)
    return [min(report.delta_norm, OUTLYING * usual * report.size) for report in reports]
