"""ScaleFL: sub-models that are scaled in width and depth together, with self-distillation of their exits.

Ilhan, Su, Liu: ScaleFL: Resource-Adaptive Federated Learning with Heterogeneous Clients, CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.methods.distillation import check_distribution
from hetfl.methods.exits import named_heads
from hetfl.objectives import Objective
from hetfl.tree import Tree
from hetfl.types import ClientContext, Level, NetFactory


def exit_distillation(logits_HNK: Tensor, temperature: float) -> Tensor:
    r"""Return for each of H exits its divergence from the deepest exit, shape (..., H); 0 for the deepest.

    .. math:: T^2 \, \mathrm{KL}\bigl(\mathrm{softmax}(\bar z_H / T) \,\Vert\, \mathrm{softmax}(z_j / T)\bigr)

    averaged over the batch, with the deepest exit's logits :math:`\bar z_H` held constant.
    """
    log_p = F.log_softmax(logits_HNK / temperature, dim=-1)
    teacher = log_p[..., -1:, :, :].detach()
    divergences = (teacher.exp() * (teacher - log_p)).sum(-1).mean(-1)
    # The deepest exit does not learn from itself; its divergence is 0, and so is that gradient up to rounding.
    kept = torch.arange(logits_HNK.shape[-3], device=logits_HNK.device) < logits_HNK.shape[-3] - 1
    return temperature**2 * divergences * kept


class ScaleFL(FederatedModule):
    r"""Sub-models of a width and a depth, with an exit per stage; deeper exits count more (section 3.2).

    .. math:: L = \frac{2}{H (H + 1)} \sum_{j=1}^{H} j \,
        \bigl(\mathrm{CE}(z_j, y) + \gamma T^2 \, \mathrm{KL}(\bar p_H \,\Vert\, p_j)\bigr)

    for a client with H exits of logits :math:`z_j`, the deepest of which teaches the others at temperature T. Each
    entry is averaged over its holders. The prediction is that of the deepest exit.

    The authors' code averages the divergence also over classes, which makes it K times smaller, and does not hold the
    teacher constant. Here :math:`\gamma` is the weight of the divergence itself.

    Args:
        net: builds the net of a level, with a width and a depth, such as :class:`~hetfl.models.MultiExitConvNet`.
        levels: the levels by name, the largest first, or budgets; None: depths 4 to 1 of widths 1, 0.75, 0.7, 0.7.
        distillation: the weight :math:`\gamma`; 0: no distillation. In texts every position counts, also those that the
            objective ignores, such as padding.
        temperature: T.
        first_round: the first round with distillation, from 0; the paper has a quarter of all rounds.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: ``distillation`` or ``first_round`` is negative, or ``temperature`` is not positive.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, width, depth)
        for name, width, depth in zip("abcd", (1.0, 0.75, 0.7, 0.7), (4, 3, 2, 1), strict=True)
    }

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        distillation: float = 0.05,
        temperature: float = 3.0,
        first_round: int = 0,
        **settings: Any,
    ) -> None:
        if distillation < 0 or first_round < 0 or not temperature > 0:
            raise ConfigurationError(
                "Expected distillation and first_round of at least 0 and temperature above 0 for ScaleFL but got "
                f"{distillation:g}, {first_round}, {temperature:g}"
            )
        super().__init__(net, levels, **settings)
        self.distillation, self.temperature, self.first_round = distillation, temperature, first_round

    def check_objective(self, objective: Objective) -> None:
        """Refuse an objective whose outputs are no distribution, if exits are distilled.

        Raises:
            ConfigurationError: the outputs are no distribution, or an error of the base class.
        """
        super().check_objective(objective)
        check_distribution(objective, self.distillation)

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss, shape (...), of outputs such as (..., H, N, K) and targets such as (..., N)."""
        exits = targets.dim() - self.objective.target_dims
        losses_H = self.objective.per_exit(outputs, targets)
        if self.distillation and ctx.round >= self.first_round:
            logits = outputs.flatten(exits + 1, -2)  # each position of a sequence is a sample
            losses_H = losses_H + self.distillation * exit_distillation(logits, self.temperature)
        weights_H = torch.arange(1, losses_H.shape[-1] + 1, device=losses_H.device, dtype=losses_H.dtype)
        return (losses_H * weights_H).sum(-1) / weights_H.sum()

    def predict(self, net: nn.Module, inputs: Tree) -> Tensor:
        """Return the logits of the deepest exit, shape (N, K)."""
        return self.predict_heads(net, inputs)[0]

    def predict_heads(self, net: nn.Module, inputs: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of the deepest exit, and each exit's logits by name: ``head_1`` is the shallowest."""
        logits_HNK = net(inputs)
        return logits_HNK[-1], named_heads(logits_HNK)
