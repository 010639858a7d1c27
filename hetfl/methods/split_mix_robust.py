"""Split-Mix with robustness: dual norms, adversarial training, and a mixture of both branches at test time.

Hong, Wang, Wang, Zhou: Efficient Split-Mix Federated Learning for On-Demand and In-Situ Customization, ICLR 2022
(arXiv 2203.09747), section 4.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hetfl.aggregators import Aggregator, SampleMean
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.levels.budgets import Budgets
from hetfl.local import PGD
from hetfl.local.method import Batch
from hetfl.methods.exits import named_heads
from hetfl.methods.split_mix import SplitMix
from hetfl.models.dual_norm import DualNorm2d, mixed
from hetfl.parts import BaseNets, PartRule
from hetfl.tree import Tree
from hetfl.types import ClientContext, Level, NetFactory


class SplitMixRobust(FederatedModule):
    r"""Base nets with dual norms; a share of every batch is perturbed and passes the noisy branch.

    .. math:: L = \frac{1}{N} \Bigl(\sum_{n > \lambda N} \ell\bigl(f_{\text{clean}}(x_n), y_n\bigr)
        + \sum_{n \le \lambda N} \ell\bigl(f_{\text{noisy}}(x_n + \delta_n), y_n\bigr)\Bigr)

    with :math:`\ell` the sum over the client's base nets, and :math:`\delta` of :class:`~hetfl.local.PGD` against
    the noisy branch. The predictions are the mean of the base nets' logits, with the mixture :math:`\alpha` of both
    branches in every norm layer: 0 is accurate, 1 is robust. A share of less than two samples is left out, as batch
    norm cannot normalise one value.

    Args:
        net: builds the ensemble of a level, with dual norms: :class:`~hetfl.models.SplitConvNet` of ``norm: dual``.
        levels: the levels by name, the widest first, or budgets; None: widths 1, 1/2, 1/4, 1/8.
        adversarial: :math:`\lambda`, the share of perturbed samples.
        mixture: :math:`\alpha`, the weight of the noisy branch in evaluations.
        attack: makes the perturbations.
        parts: the base nets that a client trains; default: :class:`~hetfl.parts.BaseNets`.
        settings: the other arguments of :class:`~hetfl.FederatedModule`.

    Raises:
        ConfigurationError: a share is not in [0, 1], or the net has no dual norms.
    """

    default_levels: ClassVar[Mapping[str, Level]] = SplitMix.default_levels
    default_aggregator: ClassVar[type[Aggregator]] = SampleMean

    def __init__(
        self,
        net: NetFactory,
        levels: dict[str, Level] | Budgets | None = None,
        adversarial: float = 0.5,
        mixture: float = 0.0,
        attack: PGD | None = None,
        parts: PartRule | None = None,
        **settings: Any,
    ) -> None:
        if not 0.0 <= adversarial <= 1.0 or not 0.0 <= mixture <= 1.0:
            raise ConfigurationError(
                f"Expected adversarial and mixture in [0, 1] for SplitMixRobust but got {adversarial:g}, {mixture:g}"
            )
        super().__init__(net, levels, parts=parts or BaseNets(), **settings)
        self.adversarial, self.mixture, self.attack = adversarial, mixture, attack or PGD()
        if not any(isinstance(layer, DualNorm2d) for layer in self.net.modules()):
            raise ConfigurationError(
                f"Expected a net with dual norms for SplitMixRobust, such as hetfl.models.SplitConvNet of norm dual, "
                f"but got {type(self.net).__name__} without them"
            )

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        """Return the sum of the losses of base nets, shape (...), of outputs (..., H, N, K) and targets (..., N)."""
        return self.objective.per_exit(outputs, targets).sum(-1)

    def training_flops(self, level: str, flops: Mapping[str, tuple[float, float]]) -> float:
        """Return those of one pass, and for perturbed samples those of a pass per step of the attack."""
        return flops[level][1] * (1.0 + self.adversarial * self.attack.steps)

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        """Return the loss of clean and perturbed samples, each in its branch."""
        (inputs, targets), random = batch, ctx.generator
        assert isinstance(inputs, Tensor)
        assert random is not None
        count = perturbed_samples(len(targets), self.adversarial)
        total = targets.new_zeros((), dtype=inputs.dtype)
        if count < len(targets):
            total = total + (len(targets) - count) * self.loss(net(inputs[count:]), targets[count:], ctx)
        if count:
            some, aims = inputs[:count], targets[:count]
            with mixed(net, 1.0, tracks=False):
                some = self.attack.perturbed(some, lambda x: self.loss(net(x), aims, ctx), random)
            with mixed(net, 1.0):
                total = total + count * self.loss(net(some), aims, ctx)
        return total / len(targets)

    def predict(self, net: nn.Module, inputs: Tree) -> Tensor:
        """Return the mean of the base nets' logits, shape (N, K), with the mixture of branches."""
        return self.predict_heads(net, inputs)[0]

    def predict_heads(self, net: nn.Module, inputs: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean of the base nets' logits, and each base net's logits by name."""
        with mixed(net, self.mixture):
            logits_HNK = net(inputs)
        return logits_HNK.mean(0), named_heads(logits_HNK)

    @torch.no_grad()
    def robustness(self, net: nn.Module, inputs: Tensor, targets: Tensor, mixture: float) -> tuple[float, float]:
        r"""Return the accuracy on samples, and that on samples that the attack has perturbed for this mixture.

        Args:
            net: the net of a level, in evaluation mode.
            inputs: inputs of the net, shape (N, ...).
            targets: their classes, shape (N,).
            mixture: :math:`\alpha`.
        """
        random = torch.Generator().manual_seed(0)
        with mixed(net, mixture):
            noisy = self.attack.perturbed(inputs, lambda x: self.objective.loss(net(x).mean(0), targets), random)
            hits = [(net(x).mean(0).argmax(-1) == targets).double().mean() for x in (inputs, noisy)]
        return float(hits[0]), float(hits[1])


def perturbed_samples(samples: int, share: float) -> int:
    """Return the number of perturbed samples of a batch; neither they nor the others are a single sample.

    >>> perturbed_samples(10, 0.5), perturbed_samples(10, 0.1), perturbed_samples(10, 0.9)
    (5, 0, 10)
    """
    count = round(share * samples)
    if count == 1:
        return 0
    return samples if samples - count == 1 else count
