"""HetLoRA: clients of different ranks, whose largest ranks shrink, and are dropped when they do.

Cho, Liu, Xu, Fahrezi, Joshi: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, EMNLP 2024
(arXiv 2401.06432).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, ZeroPadMean
from hetfl.errors import ConfigurationError
from hetfl.factors import pairs_of
from hetfl.federation import FederatedModule
from hetfl.fleet import LevelAssignment, SelfPruned
from hetfl.fleet.self_pruned import TAIL_CHANGE
from hetfl.local.method import Batch
from hetfl.types import ClientContext, Level, NetFactory


class HetLoRA(FederatedModule):
    r"""LoRA with a penalty on the tail of a client's ranks, and with self-pruning (sections 3.1 and 3.2).

    .. math:: L = F_k + \lambda \sum_l \lVert B_{:, \kappa:} \rVert_F \, \lVert A_{\kappa:} \rVert_F

    The tail of a client are the ranks from :math:`\kappa` on, the rank of the next smaller level; the smallest level
    has none. If the tail's score, the sum without :math:`\lambda`, is smaller after a client's training than before,
    the client is at the next smaller level from then on (:class:`~hetfl.fleet.SelfPruned`). With levels of ranks r,
    r - 1, ... this prunes one rank at a time, as the paper's factor :math:`\gamma = 0.99` does up to rank 100. The
    server's rule is the paper's: the mean of zero-padded factors, weighted by the norms of products
    (:class:`~hetfl.aggregators.ZeroPadMean`).

    Args:
        net: builds the net of a level, :class:`hetfl.lora.LoRA`.
        levels: the levels by name, each with its rank, the largest first.
        penalty: :math:`\lambda`.
        assignment: the levels of clients; None: :class:`~hetfl.fleet.SelfPruned`.
        aggregator: combines the updates; None: ``ZeroPadMean(weights="products")``.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: :math:`\lambda` is negative, a level has no rank or a larger one than the level before it,
            or the assignment does not read tail scores.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, rank=rank) for name, rank in zip("abcd", (8, 4, 2, 1), strict=True)
    }

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | None = None,
        penalty: float = 0.01,
        assignment: LevelAssignment | None = None,
        aggregator: Aggregator | None = None,
        **settings: Any,
    ) -> None:
        assignment = assignment or SelfPruned()
        if TAIL_CHANGE not in assignment.extras():
            raise ConfigurationError(
                f"Expected an assignment that reads tail scores for HetLoRA, such as hetfl.fleet.SelfPruned, but got "
                f"{type(assignment).__name__}"
            )
        aggregator = aggregator or ZeroPadMean("products")
        super().__init__(net, levels, assignment=assignment, aggregator=aggregator, **settings)
        if not 0.0 <= penalty < float("inf"):
            raise ConfigurationError(f"Expected penalty of at least 0 but got {penalty}")
        ranks = [level.rank for level in self.levels.values()]
        known = [rank for rank in ranks if rank is not None]
        if len(known) < len(ranks) or known != sorted(set(known), reverse=True):
            raise ConfigurationError(f"Expected levels of falling ranks for HetLoRA but got {ranks}")
        self.tail_penalty = penalty
        self._tails = dict(zip(self.levels, [*known[1:], None], strict=True))  # by level, the first rank of its tail

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        """Return the loss of a batch, plus the penalty."""
        loss, tail = super().local_loss(net, batch, ctx), self._tails[ctx.level]
        if tail is None or not self.tail_penalty:
            return loss
        return loss + self.tail_penalty * tail_score(dict(net.named_parameters()), tail)

    def after_client(self, net: nn.Module, ctx: ClientContext) -> Mapping[str, float]:
        """Return the change of the tail's score; 0 at the smallest level."""
        tail = self._tails[ctx.level]
        if tail is None:
            return {TAIL_CHANGE: 0.0}
        with torch.no_grad():
            before, after = (tail_score(tensors, tail) for tensors in (ctx.anchor, dict(net.named_parameters())))
        return {TAIL_CHANGE: float(after) - float(before)}


def tail_score(tensors: Mapping[str, Tensor], first: int) -> Tensor:
    r"""Return :math:`\sum_l \lVert B_{:, \kappa:} \rVert_F \lVert A_{\kappa:} \rVert_F`.

    Args:
        tensors: the factors of all layers by name.
        first: :math:`\kappa`, the first rank of the tail.
    """
    pairs = pairs_of(tensors).values()
    norms = [_norm(tensors[b][..., first:]) * _norm(tensors[a][first:]) for a, b in pairs]
    return torch.stack(norms).sum()


def _norm(factor: Tensor) -> Tensor:
    return factor.square().sum().clamp(min=torch.finfo(factor.dtype).tiny).sqrt()  # a norm of 0 has no gradient
