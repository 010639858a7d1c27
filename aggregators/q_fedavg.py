"""q-FedAvg: clients with a larger loss have a larger weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.aggregators.holder_mean import HolderMean
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update

EPSILON = 1e-10
"""Added to losses, because the exponent q − 1 may be negative; as in the paper's code."""
MOST = torch.finfo(torch.float32).max / 2**32
"""The largest weight: float32 then holds the sum of 2³² weights."""


class QFedAvg(HolderMean):
    r"""Fair aggregation by the q-FFL objective (Li et al., ICLR 2020, arXiv 1905.10497, algorithm 2), over holders.

    The objective is :math:`\sum_k p_k F_k^{q+1} / (q + 1)`; a larger q gives more equal losses. With :math:`F_k` the
    client's loss of the model that it downloaded, :math:`u_k` its decoded update, η the clients' learning rate, whose
    inverse is an estimate of the Lipschitz constant of their gradients, and :math:`H_j` the holders of entry j:

    .. math::
        \Delta_j = \frac{\sum_{k \in H_j} F_k^q\, u_{k,j} / \eta}{\sum_{k \in H_j} h_k}, \qquad
        h_k = q F_k^{q-1} \lVert u_k \rVert^2 / \eta^2 + F_k^q / \eta

    :math:`h_k` bounds the curvature of :math:`F_k^{q+1} / (q+1)` along all entries that client k trains, so its norm is
    over the whole update, and an entry sums the bounds of its holders. With full models this is the paper's step. As
    all clients of a round have the same η, it is a weighted mean over holders of shrunk updates,

    .. math:: \Delta_j = \frac{\sum_{k \in H_j} F_k^q s_k \cdot u_{k,j} / s_k}{\sum_{k \in H_j} F_k^q s_k}, \qquad
              s_k = 1 + \frac{q \lVert u_k \rVert^2}{\eta F_k}

    and is computed in this form: with q = 0 it equals :class:`HolderMean` bit for bit, and only ratios of losses
    matter, so that very small or very large losses do not overflow. Float buffers (running statistics) are not shrunk.

    The weights do not depend on sizes. For :math:`p_k \propto n_k` draw clients in proportion to their size
    (:class:`~hetfl.selection.SizeWeighted`), as in the paper. Every selected client passes its data through the model
    once more, which is charged to the round. The server's optimizer should be SGD(lr=1).

    Args:
        q: exponent q of the objective, at least 0; 0.001 to 5 in the paper, depending on the data.

    Raises:
        ConfigurationError: q is negative or not finite.
    """

    asks_losses: ClassVar[bool] = True

    def __init__(self, q: float = 1.0) -> None:
        super().__init__()
        if not 0 <= q < math.inf:
            raise ConfigurationError(f"Expected a finite q of at least 0 for QFedAvg but got {q}")
        self.q = q

    def weight(self, report: Report) -> float:
        """Return the weight of the client whose update is being added."""
        return self._update_weight

    def reset(self, tensors: Mapping[str, Tensor]) -> None:  # noqa: D102
        super().reset(tensors)
        self._largest = 0.0

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Add one client's update.

        Args:
            update: the decoded update.
            index: the part that the client sends, whose entries it counts as a holder of.
            report: the client's report; its initial loss and learning rate are used.

        Raises:
            ConfigurationError: the loss is negative or not finite, or the learning rate is not positive.
            RefusedUpdate: the weight is so large that sums of weights could overflow.
        """
        loss = self._loss(report)
        u_D = update.to_dense()
        norm = float(torch.linalg.vector_norm(u_D, dtype=torch.float64))
        shrink = 1 + self.q * norm * norm / (report.lr * loss)
        if not shrink <= MOST:
            raise RefusedUpdate(
                f"Expected a weight of at most {MOST:g} for QFedAvg but got {shrink:g}, of norm {norm:g}"
            )
        if loss > self._largest:
            self.scale((self._largest / loss) ** self.q)
            self._largest = loss
        self._update_weight = float((loss / self._largest) ** self.q * shrink)
        super().update(DenseUpdate(u_D / shrink, exact=update.exact), index, report)

    def _loss(self, report: Report) -> float:
        if report.initial_loss is None or not 0 <= report.initial_loss < math.inf:
            raise ConfigurationError(
                f"Expected a finite loss of at least 0 from client {report.client} for QFedAvg but got "
                f"{report.initial_loss}"
            )
        if not report.lr > 0:
            raise ConfigurationError(f"Expected a learning rate of clients above 0 for QFedAvg but got {report.lr}")
        return report.initial_loss + EPSILON
