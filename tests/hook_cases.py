"""User-defined hooks, one for each place in a round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hetfl import FederatedModule
from hetfl.compression import ErrorFeedback, TopK
from hetfl.hooks import DeltaContext, Hook, NormBound
from tests.conftest import small_module


class Noise(Hook):
    """Adds Gaussian noise to what a client compresses.

    Args:
        scale: standard deviation, divided by the learning rate of the round.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        noise_D = torch.randn(p_D.shape, generator=ctx.generator, dtype=torch.float64)
        return p_D + (self.scale * ctx.lr * noise_D).to(p_D)


class Momentum(Hook):
    r"""The server's step is a moving sum, :math:`m \leftarrow \beta m + \Delta` (FedAvgM, arXiv 1909.06335)."""

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = beta
        self.sums: dict[str, Tensor] = {}

    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, step in delta.items():
            before = self.sums.get(f"{model}:{name}", torch.zeros_like(step))
            self.sums[f"{model}:{name}"] = self.beta * before + step
        return {name: self.sums[f"{model}:{name}"] for name in delta}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = dict(state["sums"])


def hooked(**changes: Any) -> FederatedModule:
    """Return a small module with a hook at each place of a round; all of them change numbers."""
    uplink = ErrorFeedback(TopK(0.3))
    hooks = [Noise(0.02), NormBound(0.2, action="clip"), Momentum()]
    return small_module(**{"uplink": uplink, "hooks": hooks, **changes})
