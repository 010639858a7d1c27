"""FjORD: every batch is trained at a width that is drawn from those that the client can afford.

Horváth, Laskaridis, Almeida, Leontiadis, Venieris, Lane: FjORD: Fair and Accurate Federated Learning under
heterogeneous targets with Ordered Dropout, NeurIPS 2021 (arXiv 2102.13451).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.local.method import Batch
from hetfl.methods.distillation import check_distribution, soft_cross_entropy
from hetfl.objectives import Objective
from hetfl.types import ClientContext, Level, NetFactory


class FjORD(FederatedModule):
    r"""Ordered dropout (section 3.2), with self-distillation (section 3.4).

    For each batch a client draws one of the levels within its own, all equally likely. Without distillation, it trains
    its net at this level. With distillation, it trains its whole net, of logits z, on the labels, and the drawn level,
    of logits :math:`z_p`, on the whole net's outputs:

    .. math:: L = \mathrm{CE}(z, y) - \sum_c \mathrm{softmax}(\bar z)_c \log \mathrm{softmax}(z_p)_c

    with :math:`\bar z` held constant. If its own level is drawn, the second term has no gradient and is left out. Each
    entry is averaged over its holders, weighted by samples. With one level it is :class:`~hetfl.FedAvg`.

    Every width has its own statistics of static batch norm, as the server gathers them per level. A net with running
    statistics is refused, because all widths of a client would share them.

    Args:
        net: builds the net of a level.
        levels: the levels by name, the widest first, or budgets; None: widths 1, 0.8, 0.6, 0.4, 0.2.
        distillation: whether the whole net teaches the drawn width; the objective's outputs must be one distribution.
            In texts every position counts, also those that the objective ignores, such as padding.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: the net has float buffers, or there are per-level tensors.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, width) for name, width in zip("abcde", (1.0, 0.8, 0.6, 0.4, 0.2), strict=True)
    }
    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        distillation: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(net, levels, **settings)
        self.distillation = distillation
        if self.models.float_buffers:
            raise ConfigurationError(
                "Expected a net without running statistics for FjORD, whose clients train several widths, but got "
                f"{min(self.models.float_buffers)!r}: set the net's norm to static_batch, group or none"
            )
        if self.levels.copies.names:
            raise ConfigurationError("Expected no per_level tensors for FjORD, whose clients train several levels")

    def check_objective(self, objective: Objective) -> None:
        """Refuse an objective whose outputs are no distribution, if widths are distilled.

        Raises:
            ConfigurationError: the outputs are no distribution, or an error of the base class.
        """
        super().check_objective(objective)
        check_distribution(objective, self.distillation)

    @cached_property
    def affordable(self) -> dict[str, list[str]]:
        """By level, the names of the levels that are a part of it, the level itself included."""
        blocks = self.levels.blocks
        return {level: [name for name in blocks if block.covers(blocks[name])] for level, block in blocks.items()}

    def training_flops(self, level: str, flops: Mapping[str, tuple[float, float]]) -> float:
        """Return the mean over the widths that may be drawn; with distillation also those of the whole net."""
        levels, whole = self.affordable[level], flops[level][1]
        if self.distillation:
            return sum(whole if drawn == level else whole + flops[drawn][1] for drawn in levels) / len(levels)
        return sum(flops[drawn][1] for drawn in levels) / len(levels)

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        """Return the loss of a batch at a drawn level."""
        inputs, targets = batch
        levels = self.affordable[ctx.level]
        drawn = levels[int(torch.randint(len(levels), (), generator=ctx.generator))]
        if drawn == ctx.level or not self.distillation:
            of_level = net if drawn == ctx.level else ctx.narrowed(drawn)
            return self.loss(of_level(inputs), targets, ctx)
        outputs = net(inputs)
        return self.loss(outputs, targets, ctx) + soft_cross_entropy(ctx.narrowed(drawn)(inputs), outputs)
