"""What a round costs: bytes, FLOPs and simulated seconds, added up from what was really sent and done."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from hetfl.errors import ConfigurationError
from hetfl.fleet import Fleet, Work
from hetfl.fleet.numbers import IntArray
from hetfl.piece import Facts, Piece
from hetfl.printable import called

Purpose = Literal["training", "statistics", "probes"]
"""What clients are sent something for."""


@dataclass
class Costs:
    """Costs of one round, or of all rounds so far.

    Attributes:
        up_bytes: bytes from clients.
        down_training_bytes: bytes to clients that train.
        down_statistics_bytes: bytes to clients that gather statistics.
        down_probes_bytes: bytes to clients that are asked for losses before a choice.
        update_bytes: of ``up_bytes``, those of accepted updates.
        dense_bytes: bytes that accepted updates would take as dense float32 values.
        entries: entries that they could have carried.
        sent: entries that they did carry.
        flops: floating-point operations of all clients.
        sparse_flops: those of them that are with entries that clients hold.
        seconds: simulated seconds, ``waited`` included.
        waited: simulated seconds in which nobody was within reach.
        refused: updates that the server did not take.
        dropped: updates that came too late, or would have.
        failed: clients that failed while they trained, or did not answer what had to be known before.
    """

    up_bytes: int = 0
    down_training_bytes: int = 0
    down_statistics_bytes: int = 0
    down_probes_bytes: int = 0
    update_bytes: int = 0
    dense_bytes: int = 0
    entries: int = 0
    sent: int = 0
    flops: float = 0.0
    sparse_flops: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    refused: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def down_bytes(self) -> int:
        """Bytes to clients, for all purposes."""
        return self.down_training_bytes + self.down_statistics_bytes + self.down_probes_bytes

    def add_down(self, purpose: Purpose, count: int) -> None:
        """Add bytes to clients for a purpose."""
        name = f"down_{purpose}_bytes"
        setattr(self, name, getattr(self, name) + count)


@dataclass
class Ledger(Piece):
    """Adds up costs over the clients of a round and over rounds; its seconds are the simulated clock.

    A round is a sequence of phases: clients are asked for losses, train, gather statistics. In a phase all clients work
    side by side, each on one thing after the other, and the phase lasts until the server has nothing more to wait for:
    the last answer has come, the last connection broken, or the deadline passed.

    Args:
        fleet: the clients' devices.
        deadline: how many seconds after training began updates are still taken; None: however long it takes.

    Raises:
        ConfigurationError: the deadline is not positive.
    """

    for_evaluation: ClassVar[bool] = True

    fleet: Fleet
    deadline: float | None = None
    round: Costs = field(default_factory=Costs)
    total: Costs = field(default_factory=Costs)
    reachable: int = 0
    _before: float = 0.0  # the clock when the round began
    _phase_start: float = 0.0  # seconds of the round
    _purpose: Purpose = "training"  # of the phase
    _busy: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))  # seconds of the phase
    _last_share: float = 1.0
    _masks: bool = False
    _names: Sequence[str | int] | None = None

    def __post_init__(self) -> None:
        """Check the deadline."""
        if self.deadline is not None and not 0 < self.deadline < math.inf:
            raise ConfigurationError(f"Expected deadline, in seconds, above 0 or null but got {self.deadline}")

    @property
    def now(self) -> float:
        """Simulated seconds since the beginning of the run."""
        return self.total.seconds

    @property
    def up_share(self) -> float:
        """Bytes of updates for each byte of dense ones, in the last round that had any; 1 before it."""
        return self.round.update_bytes / self.round.dense_bytes if self.round.dense_bytes else self._last_share

    def setup(self, facts: Facts) -> None:
        """Learn what clients are called, and whether they may have masks: there are then sparse FLOPs, too."""
        self._masks, self._names = facts.masks, facts.client_names

    def called(self, client: int) -> str:
        """Return a client's number and, where the data has one, its name."""
        return called(client, self._names)

    def begin_round(self, round: int, lr: float) -> None:
        """Forget the last round; totals stay."""
        self._last_share = self.up_share
        self.round, self._before, self._phase_start = Costs(), self.total.seconds, 0.0
        self._purpose = "training"

    def begin_phase(self, purpose: Purpose) -> None:
        """Begin what clients do side by side, once all that was asked of them before is done.

        Args:
            purpose: what they are sent something for.
        """
        self._phase_start, self._purpose = self.round.seconds, purpose
        self._busy.clear()

    def wait(self, round: int) -> IntArray:
        """Let the clock move on until somebody is within reach, if nobody is; return who then is, ascending.

        Raises:
            ConfigurationError: that will never be.
        """
        then = self.fleet.next_reachable(round, self.now)
        if math.isinf(then):
            raise ConfigurationError(f"Expected a client within reach in round {round} but the fleet will have none")
        if then > self.now:
            waited = then - self.now
            self.round.waited += waited
            self.total.waited += waited
            self._let_pass(self.round.seconds + waited)
        return self.fleet.reachable(round, then)

    def charge(self, client: int, round: int, work: Work) -> None:
        """Add what one client does in the present phase, after what it has done in it already."""
        self._busy[client] += self.seconds(client, round, work)
        self._add(work, self._busy[client])

    def seconds(self, client: int, round: int, work: Work) -> float:
        """Return how long a client takes for some work in a round, in simulated seconds."""
        return float(self.fleet.seconds(client, round, work))

    def in_time(self, client: int, round: int, work: Work) -> bool:
        """Return whether a client's training can be done by the deadline."""
        return self.deadline is None or bool(self.fleet.seconds(client, round, work) <= self.deadline)

    def lose(self, client: int, round: int, work: Work) -> None:
        """Add a client whose update does not arrive: late, with what it got done until the deadline; else failed.

        Args:
            client: its id.
            round: the round.
            work: all of its work, or what it did before it failed.
        """
        if self.deadline is None or self.in_time(client, round, work):
            self.charge(client, round, work)
            self.round.failed += 1
            self.total.failed += 1
        else:
            self._add(self.fleet.done(client, round, work, self.deadline), self.deadline)
            self.round.dropped += 1
            self.total.dropped += 1

    def _add(self, work: Work, seconds: float) -> None:
        for costs in (self.round, self.total):
            costs.up_bytes += int(work.up_bytes)
            costs.add_down(self._purpose, int(work.down_bytes))
            costs.flops += float(work.flops)
            costs.sparse_flops += float(work.flops) * work.density
        self._let_pass(max(self.round.seconds, self._phase_start + seconds))

    def _let_pass(self, seconds: float) -> None:
        """Set the clock to so many seconds after the round began."""
        self.round.seconds = seconds
        self.total.seconds = self._before + seconds

    def sent(self, *, entries: int, sent: int, update_bytes: int, dense_bytes: int) -> None:
        """Note how many of an accepted update's entries travelled, in how many bytes."""
        for costs in (self.round, self.total):
            costs.entries += entries
            costs.sent += sent
            costs.update_bytes += update_bytes
            costs.dense_bytes += dense_bytes

    def refuse(self) -> None:
        """Note an update that the server did not take."""
        self.round.refused += 1
        self.total.refused += 1

    def settings(self) -> dict[str, object]:
        """Return the deadline; the fleet is a piece of its own."""
        return {"deadline": self.deadline}

    def costs(self) -> dict[str, float]:
        """Return the ledger's columns of ``metrics.csv``, once the round's evaluation has been charged, too."""
        now, total = self.round, self.total
        return {
            "comm/up_bytes": now.up_bytes,
            "comm/down_bytes": now.down_bytes,
            "comm/down_training_bytes": now.down_training_bytes,
            "comm/down_statistics_bytes": now.down_statistics_bytes,
            "comm/down_probes_bytes": now.down_probes_bytes,
            "comm/up_bytes_total": total.up_bytes,
            "comm/down_bytes_total": total.down_bytes,
            "comm/up_density": now.sent / now.entries if now.entries else 0.0,
            "comm/up_ratio": now.dense_bytes / now.up_bytes if now.up_bytes else 0.0,
            "comm/up_ratio_total": total.dense_bytes / total.up_bytes if total.up_bytes else 0.0,
            "comm/refused": now.refused,
            "compute/flops_total": total.flops,
            **({"compute/sparse_flops_total": total.sparse_flops} if self._masks else {}),
            "sim/round_seconds": now.seconds,
            "sim/seconds_total": total.seconds,
            "sim/waited": now.waited,
            "sim/reachable": self.reachable,
            "sim/dropped": now.dropped,
            "sim/failed": now.failed,
            "sim/lost_total": total.dropped + total.failed,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the totals, and the last round's share, as plain numbers."""
        return {**asdict(self.total), "up_share": self.up_share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the totals."""
        totals = dict(state)
        self._last_share = totals.pop("up_share")
        self.total, self.round = Costs(**totals), Costs()
        self._before = self.total.seconds
