"""Hostile clients that get the largest level."""

from __future__ import annotations

from collections.abc import Sequence

from hetfl.attacks.hostile import check_hostile, hostile_clients
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic, LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.fleet.outlook import Outlook
from hetfl.piece import Facts


class ClaimsWidest(LevelAssignment):
    """Gives hostile clients the largest level in every round, and all others the level of another assignment.

    This is what would happen if clients chose their level: entries that only the largest level holds would mostly be
    those of hostile clients. Combine it with an attack of the same ``share``, which then has the same clients.

    Args:
        of: the assignment of the others; None: drawn anew every round.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: the other assignment learns, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(
        self, of: LevelAssignment | None = None, clients: Sequence[int] | None = None, share: float | None = None
    ) -> None:
        check_hostile(type(self).__name__, clients, share)
        self.of, self.clients, self.share = of or Dynamic(), clients, share
        if not self.of.replayable:
            raise ConfigurationError(
                f"Expected an assignment that does not learn for ClaimsWidest but got {type(self.of).__name__}"
            )

    def setup(self, facts: Facts) -> None:  # noqa: D102
        super().setup(facts)
        self.of.setup(facts)
        self._hostile = sorted(hostile_clients(self.clients, self.share, facts.num_clients))

    def foresee(self, outlook: Outlook) -> None:  # noqa: D102
        self.of.foresee(outlook)

    def draw(self, round: int) -> IntArray:  # noqa: D102
        positions = self.of.draw(round).copy()
        positions[self._hostile] = 0
        return positions
