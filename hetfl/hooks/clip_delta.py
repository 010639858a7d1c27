"""A bound, at the client, on the norm of the vector that the client compresses."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.hooks.base import DeltaContext, Hook


class ClipDelta(Hook):
    r"""Shorten :math:`p = \Delta + e` to a 2-norm of at most C.

    .. math:: p' = p \min\bigl(1, C / \lVert p \rVert_2\bigr), \qquad u = \text{decode}(C(p')), \qquad e' = p' - u

    With error feedback the residual is part of p, so the bound also limits a large residual. The clipped part is lost:
    it is not kept in the residual, which would otherwise grow as long as p exceeds the bound. Float buffers are sent
    beside p and are not bounded. The clipping is that of McMahan et al. (ICLR 2018, arXiv 1710.06963), where p is Δ.
    :class:`~hetfl.hooks.NormBound` is the server's bound, which does not rely on honest clients.

    Args:
        max_norm: C, the bound.

    Raises:
        ConfigurationError: the bound is not above 0.
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise ConfigurationError(f"Expected max_norm above 0 for ClipDelta but got {max_norm}")
        self.max_norm = max_norm

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        norm = float(torch.linalg.vector_norm(p_D, dtype=torch.float64))
        return p_D * (self.max_norm / norm) if norm > self.max_norm else p_D
