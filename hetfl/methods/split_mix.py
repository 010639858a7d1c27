"""Split-Mix: the model is an ensemble of narrow nets, of which a client trains as many as it can afford.

Hong, Wang, Wang, Zhou: Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization, ICLR 2022
(arXiv 2203.09747).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.methods.exits import named_heads
from hetfl.parts import BaseNets, PartRule
from hetfl.tree import Tree
from hetfl.types import ClientContext, Level, NetFactory


class SplitMix(FederatedModule):
    r"""Clients train base nets, each on its own; the prediction of a width is the mean of its base nets' logits.

    .. math:: L = \sum_{b \in B_k} \mathrm{CE}(z_b, y), \qquad z = \frac{1}{|B|} \sum_{b \in B} z_b

    Base nets share no entries, so each gets the gradient of its own cross-entropy. The net returns the logits of its
    base nets as exits, such as :class:`~hetfl.models.SplitConvNet`; a level of width w has the share w of the base
    nets. An evaluation of a level, a width on demand, uses the first ones. Each base net is averaged over the clients
    that trained it, weighted by samples.

    ``gradient_clip`` shortens the gradient of all base nets of a client together.

    Args:
        net: builds the ensemble of a level.
        levels: the levels by name, the widest first, or budgets; None: widths 1, 1/2, 1/4, 1/8.
        parts: the base nets that a client trains; default: :class:`~hetfl.parts.BaseNets`.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, width) for name, width in zip("abcd", (1.0, 0.5, 0.25, 0.125), strict=True)
    }
    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        parts: PartRule | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, levels, parts=parts or BaseNets(), **settings)

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the sum of the losses of base nets, shape (...), of outputs (..., H, N, K) and targets (..., N)."""
        return self.objective.per_exit(outputs, targets).sum(-1)

    def predict(self, net: nn.Module, inputs: Tree) -> Tensor:
        """Return the mean of the base nets' logits, shape (N, K)."""
        return self.predict_heads(net, inputs)[0]

    def predict_heads(self, net: nn.Module, inputs: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of the base nets' logits, and each exit's logits by name: ``head_1`` is the shallowest."""
        logits_HNK = net(inputs)
        return logits_HNK.mean(0), named_heads(logits_HNK)
