"""The base class of assignments that learn from what the levels of clients have earned."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.fleet.assignment import LevelAssignment
from hetfl.fleet.credits import Reward, Scale, next_scale, normalised, rewards
from hetfl.fleet.numbers import BoolArray, FloatArray, IntArray
from hetfl.fleet.outlook import Outlook
from hetfl.layout import Index
from hetfl.piece import Facts, Piece
from hetfl.types import Report, Task
from hetfl.updates import Update
from hetfl.value import LossDrop, Value

TABLE = "assignment"
"""Name of the table of all draws in the run's folder."""
COLUMNS = ("round", "client", "level", "device", "seconds", "late", "value", "reward")
"""Columns of this table."""


class Pull(NamedTuple):
    """A client's level in a round, and what it earned.

    Attributes:
        round: the round.
        client: the client's id.
        position: of its level.
        seconds: T_k; of a late client the deadline; NaN: unknown.
        late: whether its update missed a deadline.
        value: in [0, 1].
        reward: what its level earned.
    """

    round: int
    client: int
    position: int
    seconds: float
    late: bool
    value: float
    reward: float


class LearningAssignment(LevelAssignment):
    """Draws levels at the beginning of a round, and books at its end what each level has earned.

    A client that reports earns its value per second (:func:`~hetfl.fleet.credits.rewards`). A client that misses a
    deadline earns 0 with its level, in the time of the deadline. A client that fails for another reason, or whose
    update is refused, earns nothing, and nothing is booked. Seconds are simulated, as in :class:`Report`.

    A round other than the last drawn one cannot be asked for, because levels depend on what was learnt.

    Args:
        reward: the time by which values are divided.
        scale: the number by which the values of a round are divided (:func:`~hetfl.fleet.credits.next_scale`).
        floor: the smallest gap, relative to the mean time.
        value: the value of an update; None: the decrease of the client's training loss.
        largest: the largest level that each client's device can hold; None: every device can hold every level.

    Raises:
        ConfigurationError: ``reward`` or ``scale`` is unknown, or ``largest`` learns.
    """

    replayable: ClassVar[bool] = False
    for_evaluation: ClassVar[bool] = True

    def __init__(
        self, reward: Reward, scale: Scale, floor: float, value: Value | None, largest: LevelAssignment | None
    ) -> None:
        name = type(self).__name__
        choice(f"reward of {name}", reward, Reward)
        choice(f"scale of {name}", scale, Scale)
        if largest is not None and not largest.replayable:
            raise ConfigurationError(
                f"Expected an assignment that does not learn as largest of {name} but got {type(largest).__name__}"
            )
        self.reward, self.scale, self.floor, self.largest = reward, scale, floor, largest
        self.value = value or LossDrop()
        self._scale = 0.0
        self.history: list[Pull] = []
        self._pulls: list[Pull] = []
        self._drawn: tuple[int, IntArray] | None = None  # the last round drawn, and its levels
        self._size = (0, 0)
        self._seconds: dict[int, float] = {}  # by client of the round, the seconds of its accepted updates
        self._late: set[int] = set()

    def members(self) -> dict[str, Piece]:
        """Return the value."""
        return {"value": self.value}

    def settings(self) -> dict[str, object]:
        """Return the settings; the value is a separate piece."""
        return {name: setting for name, setting in super().settings().items() if name != "value"}

    def setup(self, facts: Facts) -> None:
        """Set the levels and the clients; with another number of either, nothing is known of them."""
        super().setup(facts)
        if self.largest is not None:
            self.largest.setup(facts)
        if self._size != (size := (facts.num_clients, len(facts.levels))):
            self._size, self._drawn, self.history, self._scale = size, None, [], 0.0
            self.begin_anew(*size)

    def foresee(self, outlook: Outlook) -> None:
        """Set what is known of levels and devices before the first round.

        Raises:
            ConfigurationError: two levels hold equally many entries, or the settings do not fit levels or devices.
        """
        super().foresee(outlook)
        outlook.check_distinct(type(self).__name__)
        if self.largest is not None:
            self.largest.foresee(outlook)
        self.outlook = outlook

    @abstractmethod
    def begin_anew(self, num_clients: int, num_levels: int) -> None:
        """Forget everything that was learnt."""

    @abstractmethod
    def book(self, clients_S: IntArray, positions_S: IntArray, rewards_S: FloatArray) -> None:
        """Learn from a round: each client's id, the position of its level, and the reward, each of shape (S,)."""

    @abstractmethod
    def learnt(self) -> dict[str, Any]:
        """Return what was learnt, in plain types and tensors."""

    @abstractmethod
    def load_learnt(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`learnt` returned."""

    def allowed_NL(self, round: int) -> BoolArray:
        """Return which levels each client's device can hold, bool (N, L).

        Raises:
            ConfigurationError: a device can hold none of them.
        """
        if self.largest is None:
            return np.ones(self._size, np.bool_)
        entries_L = self.outlook.entries_L
        allowed: BoolArray = entries_L[None, :] <= entries_L[self.largest.positions(round)][:, None]
        return allowed

    def positions(self, round: int) -> IntArray:
        """Return the level of every client in the last drawn round, or in the first round if none was drawn yet.

        Raises:
            ConfigurationError: another round is asked for.
        """
        if self._drawn is None and round == 0:
            self._drawn = (0, self.draw(0))
        if self._drawn is None or self._drawn[0] != round:
            last = "none" if self._drawn is None else f"round {self._drawn[0]}"
            raise ConfigurationError(
                f"Expected an assignment that can be replayed, because it depends only on seed and round, for round "
                f"{round} but got {type(self).__name__}, which learns; its last drawn round is {last}"
            )
        return self._drawn[1]

    def begin_round(self, round: int, lr: float) -> None:
        """Draw the level of every client."""
        self._drawn = (round, self.draw(round))
        self._seconds, self._late = {}, set()

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Note a client's seconds; those of several models in a round add up."""
        self._seconds[report.client] = self._seconds.get(report.client, 0.0) + report.seconds

    def miss(self, task: Task, late: bool) -> None:
        """Note a client that was late."""
        if late:
            self._late.add(task.client)

    def end_round(self, round: int) -> None:
        """Book the rewards of all clients that reported or were late.

        Raises:
            ConfigurationError: a value is not finite.
        """
        clients = sorted(self._seconds.keys() | self._late)
        clients_S = np.array(clients, np.int64)
        positions_S = self.positions(round)[clients_S]
        limit = math.nan if self.outlook.deadline is None else self.outlook.deadline
        late_S = np.array([client in self._late for client in clients], np.bool_)
        seconds_S = np.array([limit if client in self._late else self._seconds[client] for client in clients])
        values_S = self._values(clients) if clients else seconds_S
        rewards_S = rewards(seconds_S, values_S, late_S, self.reward, self.floor)
        self.book(clients_S, positions_S, rewards_S)
        numbers = (clients_S, positions_S, seconds_S, late_S, values_S, rewards_S)
        self._pulls = [Pull(round, *row) for row in zip(*(column.tolist() for column in numbers), strict=True)]
        self.history += self._pulls

    def _values(self, clients: Sequence[int]) -> FloatArray:
        known = self.value.of_round()
        for client, value in known.items():
            if not math.isfinite(value):
                raise ConfigurationError(
                    f"Expected finite values from {type(self.value).__name__} but got {value} for client {client}"
                )
        values_S = np.array([known.get(client, math.nan) for client in clients])
        reported_S = np.array([client in self._seconds for client in clients])
        self._scale = next_scale(self._scale, values_S[reported_S], self.scale)
        values_S[reported_S] = normalised(values_S[reported_S], self._scale)
        return np.where(reported_S, values_S, 0.0)

    def columns(self) -> dict[str, float]:
        """Return the mean share of the model's entries that the round's clients held, and their mean relative gap."""
        if not self._pulls:
            return {}
        shares_L = self.outlook.entries_L / self.outlook.entries_L.max()
        columns = {"assignment/mean_share": float(np.mean([shares_L[pull.position] for pull in self._pulls]))}
        seconds = np.array([pull.seconds for pull in self._pulls if not math.isnan(pull.seconds)])
        if len(seconds):
            columns["assignment/mean_gap"] = float(np.abs(seconds / seconds.mean() - 1).mean())
        return columns

    def tables(self) -> dict[str, tuple[Sequence[str], list[Sequence[object]]]]:
        """Return the table of all draws: a row per client that reported or was late."""
        devices = self.outlook.devices
        rows: list[Sequence[object]] = []
        for pull in self.history:
            device = devices.kinds[devices.kind[pull.client]]
            seconds = None if math.isnan(pull.seconds) else pull.seconds
            chosen = (pull.round, pull.client, self.names[pull.position], device)
            rows.append((*chosen, seconds, int(pull.late), pull.value, pull.reward))
        return {TABLE: (COLUMNS, rows)}

    def evaluation_state(self) -> dict[str, Any]:
        """Return the levels of the last drawn round."""
        if self._drawn is None:
            return {"round": -1, "drawn": torch.zeros(0, dtype=torch.int64)}
        return {"round": self._drawn[0], "drawn": torch.from_numpy(self._drawn[1].copy())}

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt, the last draw, and all draws."""
        history = torch.tensor(self.history, dtype=torch.float64).reshape(-1, len(Pull._fields))
        return {**self.evaluation_state(), "learnt": self.learnt(), "scale": self._scale, "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state; clients of other data than the checkpoint's get levels without knowledge."""
        round, drawn_N = state["round"], state["drawn"].numpy().copy()
        self._drawn = None if round < 0 else (round, drawn_N)
        if round >= 0 and len(drawn_N) != self.num_clients:
            self._drawn = (round, self.draw(round))
        elif "learnt" in state:
            self.load_learnt(state["learnt"])
            self._scale = state["scale"]
            self.history = [_pull(row) for row in state["history"].tolist()]


def _pull(row: Sequence[float]) -> Pull:
    round, client, position, seconds, late, value, reward = row
    return Pull(int(round), int(client), int(position), seconds, bool(late), value, reward)
