"""What a selection policy is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from hetfl.errors import ConfigurationError
from hetfl.types import Report


class Selection(ABC):
    """Chooses the cohort of a round.

    Args:
        clients_per_round: size m of the cohort.
    """

    def __init__(self, clients_per_round: int = 10) -> None:
        if clients_per_round < 1:
            raise ConfigurationError(f"Expected clients_per_round of at least 1 but got {clients_per_round}")
        self.clients_per_round = clients_per_round

    def setup(self, sizes: Sequence[int], seed: int) -> None:
        """Learn the clients' training-set sizes and the seed.

        Raises:
            ConfigurationError: the cohort is larger than the fleet.
        """
        if self.clients_per_round > len(sizes):
            raise ConfigurationError(
                f"Expected clients_per_round of at most the number of clients, {len(sizes)}, "
                f"but got {self.clients_per_round}"
            )
        self.sizes, self.seed = tuple(sizes), seed

    @abstractmethod
    def select(self, round: int) -> list[int]:
        """Return the ids of the round's cohort, in the order in which their updates are aggregated."""

    def observe(self, reports: Sequence[Report]) -> None:
        """Learn from the reports of a round's accepted clients; by default nothing."""

    def state_dict(self) -> dict[str, object]:
        """Return what a policy has learned, as plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take back what :meth:`state_dict` gave."""
