"""FIARSE: the gradient of a mask that follows the sizes of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.layout import Layout
from hetfl.local.penalty import Penalty


class ImportanceGradient(Penalty):
    r"""Multiplies the gradient of an entry by the slope of its importance: large weights of a mask are trained faster.

    .. math:: g_j \leftarrow g_j \left(1 + \frac{2 \tau |w_j|}{(|w_j| + \tau)^2}\right)

    with :math:`\tau` the smallest absolute value, above 0, that the client began with: entries below it are not in its
    mask. It is at most 3/2, at :math:`|w_j| = \tau`, and tends to 1 for large weights.

    Wu, Wang, Zhang, Liu, Mu: FIARSE: Model-Heterogeneous Federated Learning via Importance-Aware Submodel Extraction,
    NeurIPS 2024 (arXiv 2407.19389), section 3.
    """

    def add_gradient(  # noqa: D102
        self, grad_D: Tensor, theta_D: Tensor, anchor_D: Tensor, memory_D: Tensor | None, layout: Layout
    ) -> None:
        begun_D = anchor_D.abs()
        least = begun_D.masked_fill(begun_D == 0, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0.0)
        sizes_D = theta_D.abs()
        slope_D = 2.0 * least * sizes_D / (sizes_D + least).square().clamp(min=torch.finfo(grad_D.dtype).tiny)
        grad_D.mul_(1.0 + slope_D)
