"""Hostile clients that multiply their vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from hetfl.attacks.base import Attack
from hetfl.errors import ConfigurationError
from hetfl.hooks import DeltaContext


class Scaling(Attack):
    r"""Send :math:`p' = f p` (model replacement: Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459).

    Args:
        factor: f.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(self, factor: float = 10.0, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        super().__init__(clients, share)
        if not math.isfinite(factor):
            raise ConfigurationError(f"Expected a finite factor for {type(self).__name__} but got {factor}")
        self.factor = factor

    def forged(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        return self.factor * p_D


class SignFlip(Attack):
    r"""Send :math:`p' = -f p` (Li et al., RSA, AAAI 2019, arXiv 1811.03761).

    Args:
        factor: f, above 0.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(self, factor: float = 1.0, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        super().__init__(clients, share)
        if not 0.0 < factor < math.inf:
            raise ConfigurationError(f"Expected a finite factor above 0 for SignFlip but got {factor}")
        self.factor = factor

    def forged(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        return -self.factor * p_D
