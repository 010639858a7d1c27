"""The costs of a round in bytes, FLOPs and simulated seconds, counted from encoded payloads and passed samples."""

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
"""The purpose of a download."""


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
        entries: entries of the parameters that accepted updates cover.
        sent: entries of them that were sent.
        flops: floating-point operations of all clients.
        sparse_flops: the operations on entries that clients hold.
        seconds: simulated seconds, ``waited`` included.
        waited: simulated seconds in which no client was reachable.
        refused: updates and other reports that the server refused.
        dropped: updates that missed the deadline.
        failed: clients that failed during training, or did not answer a required question before it.
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

    A round is a sequence of phases: probes (clients compute losses), training, and statistics. In a phase all clients
    work in parallel, each client on one job after the other. The phase ends when each client has answered or failed,
    or at the deadline.

    Args:
        fleet: the clients' devices.
        deadline: seconds after the start of training until which updates are accepted; None: no deadline.

    Attributes:
        late: the clients of the round with an update that missed a deadline.

    Raises:
        ConfigurationError: the deadline is not positive.
    """

    for_evaluation: ClassVar[bool] = True

    fleet: Fleet
    deadline: float | None = None
    round: Costs = field(default_factory=Costs)
    total: Costs = field(default_factory=Costs)
    reachable: int = 0
    late: set[int] = field(default_factory=set)
    _before: float = 0.0  # simulated time at which the round began
    _phase_start: float = 0.0  # in seconds since the round began
    _purpose: Purpose = "training"  # of the phase
    _busy: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))  # by client, in this phase
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
        """Bytes of updates per byte of dense updates, in the last round with updates; 1 before the first."""
        return self.round.update_bytes / self.round.dense_bytes if self.round.dense_bytes else self._last_share

    def setup(self, facts: Facts) -> None:
        """Set the clients' names, and whether parts may have masks; the ledger then also counts sparse FLOPs."""
        self._masks, self._names = facts.masks, facts.client_names

    def called(self, client: int) -> str:
        """Return a client's id and, if the data has one, its name."""
        return called(client, self._names)

    def begin_round(self, round: int, lr: float) -> None:
        """Reset the costs of the round; totals stay."""
        self._last_share = self.up_share
        self.round, self._before, self._phase_start = Costs(), self.total.seconds, 0.0
        self._purpose = "training"
        self._busy.clear()
        self.late.clear()

    def begin_phase(self, purpose: Purpose) -> None:
        """Begin a phase, in which clients work in parallel, after the end of the previous phase.

        Args:
            purpose: the purpose of the phase's downloads.
        """
        self._phase_start, self._purpose = self.round.seconds, purpose
        self._busy.clear()

    def wait(self, round: int) -> IntArray:
        """Move the clock on until a client is reachable, if none is; return the ids of reachable clients, ascending.

        Raises:
            ConfigurationError: no client will ever be reachable.
        """
        then = self.fleet.next_reachable(round, self.now)
        if math.isinf(then):
            raise ConfigurationError(
                f"Expected a client within reach in round {round + 1} but the fleet will have none"
            )
        if then > self.now:
            self._wait_for(then - self.now)
        return self.fleet.reachable(round, then)

    def _wait_for(self, seconds: float) -> None:
        """Count a time in which no client works, and move the clock on."""
        self.round.waited += seconds
        self.total.waited += seconds
        self._let_pass(self.round.seconds + seconds)

    def charge(self, client: int, round: int, work: Work) -> None:
        """Add the work of one client to the present phase, after the client's earlier work in it."""
        self._busy[client] += self.seconds(client, round, work)
        self._add(work, self._busy[client])

    def seconds(self, client: int, round: int, work: Work) -> float:
        """Return the simulated seconds that a client needs for some work in a round."""
        return float(self.fleet.seconds(client, round, work))

    def in_time(self, client: int, round: int, work: Work) -> bool:
        """Return whether a client finishes its training by the deadline, after its earlier work in the phase."""
        return self.deadline is None or self._worked(client) + self.seconds(client, round, work) <= self.deadline

    def downloads(self, client: int, round: int, down_bytes: int) -> bool:
        """Return whether a client completes a download by the deadline."""
        return self.deadline is None or self.seconds(client, round, Work(down_bytes, 0.0)) <= self.deadline

    def _worked(self, client: int) -> float:
        """Return the seconds of the phase that a client has worked before its next work begins."""
        return self._busy.get(client, 0.0)

    def lose(self, client: int, round: int, work: Work, late: bool = False) -> None:
        """Add the work of a client whose update is lost.

        If the work exceeds the deadline, the client counts as dropped, and only its work until the deadline is added.
        Otherwise it counts as failed.

        Args:
            client: its id.
            round: the round.
            work: all of its work, or its work until it failed.
            late: whether the client missed a deadline of real time; it counts as failed, and is among :attr:`late`.
        """
        in_time = self.deadline is None or self.in_time(client, round, work)
        if late or not in_time:
            self.late.add(client)
        if self.deadline is None or in_time:
            self.charge(client, round, work)
            self.round.failed += 1
            self.total.failed += 1
        else:
            left = max(0.0, self.deadline - self._worked(client))
            self._add(self.fleet.done(client, round, work, left), self.deadline)
            self._busy[client] = self.deadline
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
        """Set the clock to ``seconds`` after the start of the round."""
        self.round.seconds = seconds
        self.total.seconds = self._before + seconds

    def sent(self, *, entries: int, sent: int, update_bytes: int, dense_bytes: int) -> None:
        """Count an accepted update: its entries, the sent ones, its bytes, and the bytes of a dense one."""
        for costs in (self.round, self.total):
            costs.entries += entries
            costs.sent += sent
            costs.update_bytes += update_bytes
            costs.dense_bytes += dense_bytes

    def refuse(self) -> None:
        """Count a refused update or other report."""
        self.round.refused += 1
        self.total.refused += 1

    def settings(self) -> dict[str, object]:
        """Return the deadline; the fleet is a separate piece."""
        return {"deadline": self.deadline}

    def costs(self) -> dict[str, float]:
        """Return the ledger's columns of ``metrics.csv``."""
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
        """Return the totals and :attr:`up_share`, as plain numbers."""
        return {**asdict(self.total), "up_share": self.up_share}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned.

        Raises:
            ConfigurationError: a number is not finite or below 0; a clock at NaN would never reach the next client.
        """
        wrong = {name: value for name, value in state.items() if not 0 <= value < math.inf}
        if wrong:
            raise ConfigurationError(f"Expected finite numbers from 0 in the checkpoint's ledger but got {wrong!s:.60}")
        totals = dict(state)
        self._last_share = totals.pop("up_share")
        self.total, self.round = Costs(**totals), Costs()
        self._before = self.total.seconds
