"""The base class of attacks by single clients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from hetfl.attacks.hostile import check_hostile, hostile_clients
from hetfl.hooks import DeltaContext, Hook
from hetfl.piece import Facts


class Attack(Hook):
    """Hostile clients send a forged vector in place of p = Δ + e; all others are honest.

    With error feedback the residual of a hostile client is that of its forged vector. Float buffers stay honest.

    Args:
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn, the same ones for all attacks and seeds.

    Raises:
        ConfigurationError: not exactly one of both is given, or one is out of its range.
    """

    def __init__(self, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        check_hostile(type(self).__name__, clients, share)
        self.clients, self.share = clients, share
        self.hostile: frozenset[int] = frozenset()

    def setup(self, facts: Facts) -> None:
        """Draw the hostile clients.

        Raises:
            ConfigurationError: a client does not exist.
        """
        self.hostile = hostile_clients(self.clients, self.share, facts.num_clients)

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        return self.forged(p_D, ctx) if ctx.client in self.hostile else p_D

    @abstractmethod
    def forged(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        """Return what a hostile client compresses in place of its vector, shape (D,).

        Args:
            p_D: its honest vector.
            ctx: the client, its level, its part, the round.
        """
