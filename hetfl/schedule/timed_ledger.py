"""The ledger of schedules with a clock of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hetfl.accounting import Ledger
from hetfl.accounting.ledger import Purpose
from hetfl.errors import ConfigurationError
from hetfl.fleet.numbers import IntArray


@dataclass
class TimedLedger(Ledger):
    """Adds up costs like a ledger, but only :meth:`pass_until` moves the clock: work of clients does not.

    So statistics cost bytes and operations, and no time: clients gather them while others train.
    """

    def begin_phase(self, purpose: Purpose) -> None:
        """Begin a phase.

        Raises:
            ConfigurationError: clients would be asked before they train, and nobody waits for their answers.
        """
        if purpose == "probes":
            raise ConfigurationError(
                "Expected the schedule Synchronous for a policy that asks clients before they train but got one that "
                "does not wait for answers"
            )
        super().begin_phase(purpose)

    def wait(self, round: int) -> IntArray:
        """Return the ids of clients that are reachable now, ascending; if there are none, of those that will be next.

        Raises:
            ConfigurationError: no client will ever be reachable.
        """
        then = self.fleet.next_reachable(round, self.now)
        if math.isinf(then):
            raise ConfigurationError(f"Expected a client within reach in round {round} but the fleet will have none")
        return self.fleet.reachable(round, then)

    def pass_until(self, time: float, idle: bool = False) -> None:
        """Set the clock.

        Args:
            time: simulated seconds since the beginning of the run.
            idle: whether no client works until then.
        """
        for costs in (self.round, self.total) if idle else ():
            costs.waited += time - self.now
        self.round.seconds, self.total.seconds = time - self._before, time

    def _let_pass(self, seconds: float) -> None:
        """Leave the clock as it is."""
