"""The base class of hooks, which change a client's vector, an update on the server, or the server's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.layout import Index
from hetfl.part import Part
from hetfl.piece import Piece
from hetfl.types import Report
from hetfl.updates import Update


@dataclass(frozen=True)
class DeltaContext:
    """The context of a client whose vector a hook changes.

    Attributes:
        client: the client's id.
        level: the name of its level.
        round: the round's number, from 0.
        lr: the clients' learning rate γ_t.
        part: positions of the vector's D entries in the global model; with a mask, only those of held entries.
        generator: for random choices, on the CPU; a separate one for each client, round and hook.
    """

    client: int
    level: str
    round: int
    lr: float
    part: Part
    generator: torch.Generator


class Hook(Piece):
    """Changes what is aggregated, by up to three methods; by default each returns its input.

    Each method gets values, which it must not modify, and returns values. Hooks act in the order of
    ``FederatedModule(hooks=[...])``; each gets the values that the previous hook returned.

    Changes on the server affect the aggregation only: residuals, memories of penalties and every piece's
    :meth:`~hetfl.piece.Piece.observe` use the update as decoded.

    A hook is a :class:`~hetfl.piece.Piece`: its settings are part of the fingerprint, its state is in checkpoints, its
    columns are in ``metrics.csv``. :meth:`on_update` and :meth:`on_step` run on the server and may change the hook's
    state; with several ranks every rank runs them on the same updates.
    """

    adds_up: ClassVar[bool] = False
    """Whether columns of counts of several such hooks add up; other hooks need columns of different names."""

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        r"""Return the vector p' that a client compresses in place of :math:`p = \Delta + e`.

        It runs at the client: in the server's process, in the rank that trained the client, or in the client's Flower
        node. It may read the hook's settings and ``ctx``, and must not keep a state.

        The new residual is :math:`e' = p' - u`, with u the update. So error feedback later sends what the compressor
        leaves out. It does not restore what a hook removed, nor remove what a hook added: clipped values are lost, and
        noise is not subtracted in the next round. Float buffers are sent beside p and are not in it.

        Args:
            p_D: Δ plus the residual, or Δ alone without error feedback, shape (D,).
            ctx: the client, its level, its part, the round.

        Raises:
            RefusedUpdate: the client sends nothing; its delta is lost and its residual does not change.
        """
        return p_D

    def on_update(self, update: Update, index: Index, report: Report) -> Update:
        """Return the update that the server adds up in place of a decoded one.

        Args:
            update: the decoded update, as changed by the hooks before this one.
            index: positions of its entries in the global model: the sent parameters, then the float buffers.
            report: the client's report, completed by the server.

        Raises:
            RefusedUpdate: the update is not added up; it counts as refused, and its client's residual does not change.
        """
        return update

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        r"""Return the step Δ that the server's optimizer takes, as :math:`\theta.\text{grad} = -\Delta`.

        Args:
            model: number of the global model; :data:`~hetfl.types.SHARED` for the tensors that all models share.
            delta: the aggregated step of each tensor, float buffers included, by name.
            holders: by name, number or weight of the holders of each entry. Entries with 0 do not change, whatever the
                hook returns.
        """
        return delta

    def regroup(self, clusters: Sequence[int]) -> None:
        """Called before a round's first update with every client's cluster, -1 for none; by default does nothing."""
