"""SGD for several clients at once: each row of a matrix is a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from hetfl.errors import ConfigurationError


class RowSGD:
    r"""torch's SGD on rows of a matrix.

    .. math:: g \leftarrow g + \lambda \theta, \quad b \leftarrow \mu b + (1 - \tau) g, \quad
        \theta \leftarrow \theta - \gamma b

    with momentum μ, dampening τ (not in a row's first step), weight decay λ, learning rate γ.

    Args:
        make: makes the clients' optimizer, whose settings are used.

    Raises:
        ConfigurationError: the optimizer is not SGD.
    """

    def __init__(self, make: Callable[[Iterable[Tensor]], Optimizer]) -> None:
        optimizer = make([nn.Parameter(torch.zeros(1))])
        if type(optimizer) is not SGD:
            raise ConfigurationError(
                f"Expected local.optimizer SGD for executor Stacked but got {type(optimizer).__name__}: "
                "use Sequential or Workers"
            )
        group = optimizer.param_groups[0]
        self.momentum, self.dampening = group["momentum"], group["dampening"]
        self.weight_decay, self.nesterov, self.maximize = group["weight_decay"], group["nesterov"], group["maximize"]

    def direction(self, grad_SD: Tensor, theta_SD: Tensor, momentum_SD: Tensor, first_S1: Tensor | None) -> Tensor:
        """Return the direction of a step, before the learning rate; changes gradients and momenta in place.

        Args:
            grad_SD: gradients.
            theta_SD: parameters.
            momentum_SD: momentum buffers, zero before a row's first step.
            first_S1: 1 in rows that take their first step, 0 in others; None: all 0.
        """
        if self.maximize:
            grad_SD.neg_()
        if self.weight_decay:
            grad_SD.add_(theta_SD, alpha=self.weight_decay)
        if not self.momentum:
            return grad_SD
        momentum_SD.mul_(self.momentum)
        if not self.dampening:
            momentum_SD.add_(grad_SD)
        elif first_S1 is None:
            momentum_SD.add_(grad_SD, alpha=1.0 - self.dampening)
        else:
            momentum_SD.addcmul_(grad_SD, 1.0 - self.dampening * (1.0 - first_S1))
        return grad_SD.add_(momentum_SD, alpha=self.momentum) if self.nesterov else momentum_SD
