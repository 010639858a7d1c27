"""What width-scaled nets are made of: the channel rule, the Scaler, the choice of norm layer."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.models.static_batch_norm import StaticBatchNorm2d

Norm = Literal["static_batch", "batch", "group", "none"]
"""Norm layers: static batch norm (HeteroFL), running-average batch norm, group norm of 4 groups, none."""


def scaled(channels: int, width: float) -> int:
    """Return the number of channels at a width ratio: ``ceil(width * channels)`` (HeteroFL, section 3).

    Raises:
        ConfigurationError: ``width`` is not in (0, 1].

    >>> scaled(64, 0.5), scaled(10, 0.07), scaled(100, 0.07)
    (32, 1, 7)
    """
    if not 0.0 < width <= 1.0:
        raise ConfigurationError(f"Expected width in (0, 1] but got {width}")
    # 0.07 * 100 is 7.000000000000001 in binary: round first, or the ceiling is one too many.
    return math.ceil(round(width * channels, 9))


class Scaler(nn.Module):
    r"""Divide by the width ratio in training, pass through in evaluation (HeteroFL, section 3).

    .. math:: y = x / \rho \ \text{(training)}, \qquad y = x \ \text{(evaluation)}

    Args:
        width: the ratio :math:`\rho` of the sub-model to the global model.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` scaled; any shape."""
        return x / self.width if self.training and self.width != 1.0 else x

    def extra_repr(self) -> str:
        """Return the ratio for ``print(net)``."""
        return f"width={self.width}"


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """Return the norm layer of a kind for (N, C, H, W) activations.

    Raises:
        ConfigurationError: the kind is unknown, or 4 groups do not divide the channels.
    """
    match norm:
        case "static_batch":
            return StaticBatchNorm2d(channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            if channels % 4:
                raise ConfigurationError(f"Expected a multiple of 4 channels for norm 'group' but got {channels}")
            return nn.GroupNorm(4, channels)
        case "none":
            return nn.Identity()
    raise ConfigurationError(f"Expected norm in ('static_batch', 'batch', 'group', 'none') but got {norm!r}")
