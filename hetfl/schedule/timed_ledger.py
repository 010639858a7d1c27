"""The ledger of schedules with a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass

from hetfl.accounting import Ledger
from hetfl.accounting.ledger import Purpose
from hetfl.errors import ConfigurationError


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

    def _worked(self, client: int) -> float:
        """Return 0: a deadline counts from the moment at which a client takes the model."""
        return 0.0

    def pass_until(self, time: float, idle: bool = False) -> None:
        """Set the clock.

        Args:
            time: simulated seconds since the beginning of the run.
            idle: whether no client works until then.
        """
        for costs in (self.round, self.total) if idle else ():
            costs.waited += time - self.now
        self.round.seconds, self.total.seconds = time - self._before, time

    def _wait_for(self, seconds: float) -> None:
        """Leave the clock as it is: those who ask do not wait."""

    def _let_pass(self, seconds: float) -> None:
        """Leave the clock as it is."""
