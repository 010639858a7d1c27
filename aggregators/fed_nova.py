"""FedNova: the mean of updates per local step, times the mean number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.aggregators.base import Aggregator
from hetfl.aggregators.holder_mean import frozen_zeros
from hetfl.aggregators.sample_mean import SampleMean
from hetfl.entries import add_holders
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.types import Report
from hetfl.updates import Update


class FedNova(Aggregator):
    r"""Normalised averaging: clients that take more local steps do not pull the mean towards their own minimum.

    .. math:: \Delta_j = \tau_j \frac{\sum_{k \in H_j} n_k u_{k,j} / a_k}{\sum_{k \in H_j} n_k}, \qquad
        \tau_j = \frac{\sum_{k \in H_j} n_k a_k}{\sum_{k \in H_j} n_k}, \qquad
        a_k = \frac{\tau_k - \rho (1 - \rho^{\tau_k}) / (1 - \rho)}{1 - \rho}
        \;\text{(momentum)}, \qquad a_k = \frac{1 - (1 - \gamma \mu)^{\tau_k}}{\gamma \mu} \;\text{(proximal)}

    with :math:`\tau_k` the steps of client k, :math:`\rho` the clients' momentum, :math:`\mu` the weight of their
    proximal term and :math:`\gamma` their learning rate (:math:`a_k = \tau_k` without both), and :math:`H_j` the
    holders of entry j. The number of effective steps :math:`\tau_j` is that of the entry's holders: a number for the
    whole model would overshoot where only clients with few steps hold an entry. Float buffers are averaged as they are.

    Wang, Liu, Liang, Joshi, Poor: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization,
    NeurIPS 2020 (arXiv 2007.07481), equations 8 and 9. There all clients hold all entries.

    Args:
        momentum: :math:`\rho`, of the clients' optimizer.
        proximal_mu: :math:`\mu`, of the clients' :class:`hetfl.local.Proximal`.

    Raises:
        ConfigurationError: ``momentum`` is not in [0, 1), ``proximal_mu`` is negative, or both are above 0.
    """

    by_size: ClassVar[bool] = True

    def __init__(self, momentum: float = 0.0, proximal_mu: float = 0.0) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ConfigurationError(f"Expected momentum in [0, 1) for FedNova but got {momentum}")
        if proximal_mu < 0.0 or (momentum and proximal_mu):
            raise ConfigurationError(
                "Expected proximal_mu of at least 0, and only one of momentum and proximal_mu above 0, for FedNova but "
                f"got momentum {momentum:g}, proximal_mu {proximal_mu:g}"
            )
        self.momentum, self.proximal_mu = momentum, proximal_mu
        self._normalised = SampleMean()
        self._steps: dict[str, Tensor] = {}  # samples times effective steps of the holders of each entry
        self._buffers: set[str] = set()

    def effective(self, steps: int, lr: float = 0.0) -> float:
        """Return a, the effective number of a client's local steps.

        Args:
            steps: τ.
            lr: the clients' learning rate γ of the round; only the proximal form uses it.

        >>> round(FedNova(0.9).effective(4), 3), FedNova().effective(4)
        (9.049, 4.0)
        >>> round(FedNova(proximal_mu=1.0).effective(3, lr=0.1), 3)
        2.71
        """
        if shrinking := lr * self.proximal_mu:
            return (1.0 - (1.0 - shrinking) ** steps) / shrinking
        rho = self.momentum
        return (steps - rho * (1.0 - rho**steps) / (1.0 - rho)) / (1.0 - rho)

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        self._normalised.reset(tensors)
        frozen = frozen_zeros(tensors)
        self._steps = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if name not in frozen}
        self._buffers = set()

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Add one client's update.

        Args:
            update: the decoded update.
            index: the part that the client sends, whose entries it counts as a holder of.
            report: the client's report; its steps are used.

        Raises:
            RefusedUpdate: the client took no step, or its proximal steps cancel each other (γμ of 2 or more).
        """
        if report.steps < 1:
            raise RefusedUpdate(f"Expected at least one local step for FedNova but got {report.steps}")
        if report.lr * self.proximal_mu >= 2.0:
            raise RefusedUpdate(
                f"Expected lr * proximal_mu below 2 for FedNova but got {report.lr * self.proximal_mu:g}"
            )
        part, effective = part_of(index), self.effective(report.steps, report.lr)
        self._buffers |= {name for name, start in zip(part, part.held.offsets, strict=True) if start >= update.size}
        self._normalised.update(update.scaled(1.0 / effective).with_exact(update.exact), index, report)
        add_holders(self._steps, part, report.samples * effective)

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return by name the step of every tensor, and the weight of the holders of each entry."""
        steps, holders = self._normalised.compute()
        for name in self._steps.keys() - self._buffers:
            steps[name] = steps[name] * self._steps[name] / holders[name].where(holders[name] > 0, 1.0)
        return steps, holders
