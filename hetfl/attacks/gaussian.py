"""Hostile clients that send noise as long as a multiple of their honest vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.attacks.base import Attack
from hetfl.errors import ConfigurationError
from hetfl.hooks import DeltaContext


class Gaussian(Attack):
    r"""Send noise, :math:`p' \sim \mathcal N(0, \sigma^2 I)`, with :math:`\sigma = f \lVert p \rVert_2 / \sqrt D`.

    The noise of Blanchard et al., NeurIPS 2017, has a constant :math:`\sigma`.

    Args:
        factor: f, above 0.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(self, factor: float = 10.0, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        super().__init__(clients, share)
        if not 0.0 < factor < math.inf:
            raise ConfigurationError(f"Expected a finite factor above 0 for Gaussian but got {factor}")
        self.factor = factor

    def forged(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        sigma = self.factor * float(torch.linalg.vector_norm(p_D, dtype=torch.float64)) / math.sqrt(max(1, len(p_D)))
        noise = torch.randn(len(p_D), generator=ctx.generator, dtype=torch.float64)
        return (sigma * noise).to(p_D)
