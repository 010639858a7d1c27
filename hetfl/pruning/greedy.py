"""PruneFL's choice of entries: the largest decrease of the loss per second."""

from __future__ import annotations

import torch
from torch import Tensor


def fastest_descent(
    scores_D: Tensor, seconds_D: Tensor, score: float = 0.0, seconds: float = 0.0
) -> tuple[Tensor, float]:
    r"""Return the set A of entries that maximises :math:`\Gamma(A) = (s_0 + \sum_A s_j) / (t_0 + \sum_A t_j)`, and it.

    Entries are added in descending order of :math:`s_j / t_j` while this ratio is above the present :math:`\Gamma`;
    of equal ratios the lower position comes first.

    Jiang et al.: Model Pruning Enables Efficient Federated Learning on Edge Devices, IEEE TNNLS 2022, theorem 1.

    Args:
        scores_D: squared gradients :math:`s_j` of the candidates, shape (D,), not below 0.
        seconds_D: seconds :math:`t_j` of the candidates, shape (D,), above 0.
        score: :math:`s_0`, of the entries that are always held.
        seconds: :math:`t_0`, the fixed seconds and those of the entries that are always held; above 0.

    Returns:
        The mask of A, bool, shape (D,), and :math:`\Gamma(A)`.
    """
    scores_D, seconds_D = scores_D.double().cpu(), seconds_D.double().cpu()
    ratios_D = scores_D / seconds_D
    order_D = ratios_D.argsort(descending=True, stable=True)
    gained_D, spent_D = scores_D[order_D].cumsum(0), seconds_D[order_D].cumsum(0)
    before_D = (score + gained_D - scores_D[order_D]) / (seconds + spent_D - seconds_D[order_D])
    worse = (ratios_D[order_D] <= before_D).nonzero()
    count = int(worse[0]) if len(worse) else len(order_D)
    mask_D = torch.zeros(len(order_D), dtype=torch.bool)
    mask_D[order_D[:count]] = True
    return mask_D, float((score + scores_D[mask_D].sum()) / (seconds + seconds_D[mask_D].sum()))
