"""What a hook is: it changes what a client sends, what the server adds up, or the step that the server takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.layout import Index
from hetfl.part import Part
from hetfl.piece import Piece
from hetfl.types import Report
from hetfl.updates import Update


@dataclass(frozen=True)
class DeltaContext:
    """What a hook may know of the client whose vector it changes.

    Attributes:
        client: the client's id.
        level: the name of its level.
        round: the round's number, from 0.
        lr: the clients' learning rate γ_t.
        part: where the vector's D entries lie in the global model; with a mask, only those that are held.
        generator: for random choices, on the CPU; the client's own, another one in every round and for every hook.
    """

    client: int
    level: str
    round: int
    lr: float
    part: Part
    generator: torch.Generator


class Hook(Piece):
    """Changes what is aggregated, at three places in a round; by default nothing at any of them.

    Each place gets values and returns values. What it gets is only read. Hooks act in the order of
    ``FederatedModule(hooks=[...])``, and each gets what the one before it returned.

    What a hook changes on the server is changed for the aggregation alone: residuals, memories of penalties and every
    piece's :meth:`~hetfl.piece.Piece.observe` follow the update as the server decoded it.

    A hook is a :class:`~hetfl.piece.Piece`: its settings are part of the fingerprint, its state is in checkpoints, its
    columns are in ``metrics.csv``. The server's two places may change its state; on several ranks every rank runs them
    on the same updates.
    """

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        r"""Return what a client compresses, in place of :math:`p = \Delta + e`.

        This is the client's side: it runs where p is formed, which is the server's process, the rank that trained the
        client, or the client's Flower node. There the hook knows its settings and ``ctx`` and must not keep a state.

        The new residual is :math:`e' = p' - u` with p' the vector that is returned and u the update. So error feedback
        makes up for what the compressor leaves out, and never for what a hook took away or added: what is clipped is
        gone, and noise is not taken back in the next round. Float buffers travel beside p and are not in it.

        Args:
            p_D: Δ plus the residual, or Δ alone without error feedback, shape (D,).
            ctx: whose vector it is.

        Raises:
            RefusedUpdate: the client sends nothing; its delta is lost and its residual stays.
        """
        return p_D

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        """Return what the server adds up in place of a decoded update.

        Args:
            update: what the server decoded, as the hooks before this one changed it.
            index: where its entries lie in the global model: what the client sent, parameters and then float buffers.
            report: what is known of the client's training.

        Raises:
            RefusedUpdate: the update is not added up; it counts as refused, and its client's residual stays.
        """
        return update

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return the step Δ that the server's optimizer takes, as :math:`\theta.\text{grad} = -\Delta`.

        Args:
            model: number of the global model; :data:`~hetfl.types.SHARED` for what all models share.
            delta: the aggregated step of each tensor, float buffers included, by name.
            holders: number or weight of holders of each entry; 0: nobody. Such entries stay as they are, whatever is
                returned.
        """
        return delta

    def regroup(self, clusters: Sequence[int]) -> None:
        """Learn every client's cluster, -1 for none yet, before a round's first update. By default nothing."""
