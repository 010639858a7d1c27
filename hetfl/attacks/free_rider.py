"""Clients that do not train, and want the model all the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.attacks.base import Attack
from hetfl.errors import ConfigurationError
from hetfl.hooks import DeltaContext


class FreeRider(Attack):
    r"""Send zeros, or small noise that looks like an update: :math:`p' \sim \mathcal N(0, \sigma^2 I)`.

    Fraboni, Vidal, Lorenzi: Free-rider Attacks on Model Aggregation in Federated Learning, AISTATS 2021 (arXiv
    2006.11901).

    Args:
        noise: :math:`\sigma`, at least 0; 0: zeros.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(self, noise: float = 0.0, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        super().__init__(clients, share)
        if not 0.0 <= noise < 1e9:
            raise ConfigurationError(f"Expected noise in [0, 1e9) for FreeRider but got {noise}")
        self.noise = noise

    def forged(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:  # noqa: D102
        if not self.noise:
            return torch.zeros_like(p_D)
        return (self.noise * torch.randn(len(p_D), generator=ctx.generator, dtype=torch.float64)).to(p_D)
