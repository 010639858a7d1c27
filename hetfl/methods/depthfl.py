"""DepthFL: clients train the first stages of the global model, and every stage has a head.

Kim, Yu, Kim, Moon: DepthFL: Depthwise Federated Learning for Heterogeneous Clients, ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.methods.distillation import check_distribution
from hetfl.methods.exits import named_heads
from hetfl.models.exits import Stage
from hetfl.objectives import Objective
from hetfl.part import Part, only
from hetfl.tree import Tree
from hetfl.types import ClientContext, Level, NetFactory

EPSILON = 1e-7
"""Added to the teachers' probabilities, which are not normalised again (the authors' code)."""


def ramp(round: int, rounds: int) -> float:
    r"""Return the weight of self-distillation, from 0.0067 in round 0 to 1 from round ``rounds`` on.

    .. math:: w(t) = e^{-5 (1 - \min(t, R) / R)^2}
    """
    return math.exp(-5.0 * (1.0 - min(round, rounds) / rounds) ** 2) if rounds else 1.0


def distillation_loss(logits_HNK: Tensor) -> Tensor:
    r"""Return the mutual distillation of H heads, averaged over the batch, shape (...); 0 for a single head.

    .. math:: \frac{1}{H - 1} \sum_i \sum_{j \ne i} \mathrm{KL}(p_j \,\Vert\, p_i), \qquad p_j \text{ detached}

    The target is the other head's distribution, at temperature 1 (section 3.2).
    """
    heads = logits_HNK.shape[-3]
    if heads == 1:
        return logits_HNK.new_zeros(logits_HNK.shape[:-3])
    log_p = F.log_softmax(logits_HNK, dim=-1)
    teacher = log_p.detach().exp() + EPSILON
    # Σ_i Σ_{j≠i} p_j (log p_j − log p_i) as sums over all pairs minus the terms with i = j.
    entropies = (heads - 1) * (teacher * teacher.log()).sum(-3)
    crossed = teacher.sum(-3) * log_p.sum(-3) - (teacher * log_p).sum(-3)
    return (entropies - crossed).sum(-1).mean(-1) / (heads - 1)


class DepthFL(FederatedModule):
    r"""Depth-scaled sub-models with a head per stage, averaged over their holders, with mutual distillation of heads.

    .. math:: L = \sum_i \mathrm{CE}(z_i, y)
        + \frac{w(t)}{M - 1} \sum_i \sum_{j \ne i} \mathrm{KL}(p_j \,\Vert\, p_i)

    for a client with M heads of logits :math:`z_i`. The prediction is the mean of the heads' logits, or with
    ``deepest_only`` the logits of the deepest head, as no client may train the others. The paper adds
    FedDyn: ``local.penalty: hetfl.local.FedDyn``. The net must take ``depth`` and return the logits of all its heads,
    shape (H, N, K), such as :class:`~hetfl.models.MultiExitResNet`; levels may also have a width.

    Args:
        net: builds the net of a level.
        levels: the levels by name, the deepest first, or budgets; None: depths 4, 3, 2, 1.
        distillation: whether heads learn from each other; the objective's outputs must be one distribution per sample.
            In texts every position counts, also those that the objective ignores, such as padding.
        ramp_rounds: rounds R until distillation has its full weight.
        deepest_only: train and send only a client's deepest head (InclusiveFL, KDD 2022, without its momentum); it
            excludes distillation. A head is averaged over the clients that trained it. DepthFL's code also averages in
            the unchanged copies of deeper clients.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: ``ramp_rounds`` is negative, or both ``distillation`` and ``deepest_only`` are true.
    """

    default_levels: ClassVar[Mapping[str, Level]] = {
        name: Level(name, depth=depth) for name, depth in zip("abcd", (4, 3, 2, 1), strict=True)
    }

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        distillation: bool = True,
        ramp_rounds: int = 300,
        deepest_only: bool = False,
        **settings: Any,
    ) -> None:
        if ramp_rounds < 0:
            raise ConfigurationError(f"Expected ramp_rounds of at least 0 but got {ramp_rounds}")
        if deepest_only and distillation:
            raise ConfigurationError(
                "Expected distillation false with deepest_only, where a client trains one head, but got true"
            )
        super().__init__(net, levels, **settings)
        self.distillation, self.ramp_rounds, self.deepest_only = distillation, ramp_rounds, deepest_only

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the local loss, shape (...), of outputs such as (..., H, N, K) and targets such as (..., N)."""
        exits = targets.dim() - self.objective.target_dims
        if self.deepest_only:
            outputs = outputs.narrow(exits, outputs.shape[exits] - 1, 1)
        loss = self.objective.per_exit(outputs, targets).sum(-1)
        if self.distillation:
            logits = outputs.flatten(exits + 1, -2)  # each position of a sequence is a sample
            loss = loss + ramp(ctx.round, self.ramp_rounds) * distillation_loss(logits)
        return loss

    def check_objective(self, objective: Objective) -> None:
        """Refuse an objective whose outputs are no distribution, if heads are distilled.

        Raises:
            ConfigurationError: the outputs are no distribution, or an error of the base class.
        """
        super().check_objective(objective)
        check_distribution(objective, self.distillation)

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return the client's part, with ``deepest_only`` without its shallower heads."""
        sent = super().sent(part, level, round, client)
        if not self.deepest_only:
            return sent
        return only(sent, frozenset(name for name in sent if not name.startswith(self.shallower_heads[level])))

    @cached_property
    def shallower_heads(self) -> dict[str, tuple[str, ...]]:
        """By level, prefixes of the names of the tensors of all heads but the deepest.

        Raises:
            ConfigurationError: the net has no :class:`~hetfl.models.exits.Stage`.
        """
        prefixes = {}
        for level in self.levels:
            stages = [name for name, part in self.levels.build(level).named_modules() if isinstance(part, Stage)]
            if not stages:
                raise ConfigurationError(
                    "Expected a net of hetfl.models.exits.Stage for deepest_only, to find its heads, but got "
                    f"{type(self.net).__name__}"
                )
            prefixes[level] = tuple(f"{stage}.{part}." for stage in stages[:-1] for part in ("exit", "classifier"))
        return prefixes

    def predict(self, net: nn.Module, inputs: Tree) -> Tensor:
        """Return the logits of the prediction, shape (N, K)."""
        return self.predict_heads(net, inputs)[0]

    def predict_heads(self, net: nn.Module, inputs: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits of the prediction, and each exit's logits by name: ``head_1`` is the shallowest."""
        logits_HNK = net(inputs)
        return logits_HNK[-1] if self.deepest_only else logits_HNK.mean(0), named_heads(logits_HNK)
