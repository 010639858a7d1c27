"""The building blocks of width-scaled nets: the number of channels, the Scaler, norm layers, the classifier."""

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
    # 0.07 * 100 is 7.000000000000001 in floating point, whose ceiling is 8: round first.
    return math.ceil(round(width * channels, 9))


def kept_stages(depth: int | None, stages: int) -> int:
    """Return the number of stages that a net of a depth has: ``depth``, or all stages if it is None.

    Raises:
        ConfigurationError: the net has no stage, or ``depth`` is not in 1..``stages``.

    >>> kept_stages(2, 4), kept_stages(None, 4)
    (2, 4)
    """
    if stages < 1:
        raise ConfigurationError("Expected at least one stage (a size in hidden, or a layer) but got none")
    if depth is not None and not 1 <= depth <= stages:
        raise ConfigurationError(f"Expected depth in 1..{stages}, the net's number of stages, but got {depth}")
    return stages if depth is None else depth


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


def make_classifier(features: int, num_classes: int) -> nn.Linear:
    """Return the last layer of a net. Its bias is initialised with 0, as in HeteroFL's code."""
    classifier = nn.Linear(features, num_classes)
    nn.init.zeros_(classifier.bias)
    return classifier


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


class ConvNorm(nn.Sequential):
    """A convolution, the Scaler, a norm layer.

    Args:
        conv: the convolution; the Scaler divides its output.
        norm: kind of norm layer.
        width: ratio for the Scaler.
    """

    def __init__(self, conv: nn.Conv2d, norm: Norm, width: float) -> None:
        super().__init__()
        self.add_module("conv", conv)
        self.add_module("scaler", Scaler(width))
        self.add_module("norm", make_norm(norm, conv.out_channels))
