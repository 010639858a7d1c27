"""An ensemble of narrow convolutional nets, as in Split-Mix (Hong et al., ICLR 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.models.dual_norm import DualNorm2d
from hetfl.models.layers import Scaler, make_classifier, make_norm

RUNNING = ("batch", "dual")
"""Norms with running statistics. A Scaler acts in training only: the statistics would not fit an evaluation."""


class SplitConvNet(nn.Module):
    """Base nets of one architecture, :class:`~hetfl.models.ConvNet` at width 1/B, in grouped convolutions.

    Every tensor has the base nets as blocks of its first dimension. A width w is the first wB base nets, and the net
    returns their logits as exits. The channels of a base net are rounded down, and there is at least one. With the
    defaults a base net has 25 274 parameters, and all eight together 202 192: an eighth of a ConvNet of the same hidden
    sizes. Norms with running statistics have no Scaler before them.

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        hidden: channels of the blocks of a net of width 1; a base net has a B-th of them.
        bases: number B of base nets at width 1.
        norm: kind of norm layer; the base nets share none of its statistics. ``dual``: for adversarial training
            (:class:`~hetfl.models.DualNorm2d`).
        width: share of the base nets, a multiple of 1/B in (0, 1].

    Raises:
        ConfigurationError: ``bases`` is below 1, ``width`` is no multiple of 1/B in (0, 1], or ``norm`` is ``group``.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden: Sequence[int] = (64, 128, 256, 512),
        bases: int = 8,
        norm: Literal["static_batch", "batch", "none", "dual"] = "static_batch",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if norm == "group":  # type: ignore[comparison-overlap]
            raise ConfigurationError(
                "Expected norm static_batch, batch, none or dual for SplitConvNet, whose base nets would share the "
                "statistics of groups, but got group"
            )
        self.exits = kept_bases(width, bases)
        sizes = [self.exits * max(1, size // bases) for size in hidden]
        self.blocks = nn.Sequential()
        for i, (incoming, outgoing) in enumerate(itertools.pairwise([in_channels, *sizes])):
            block = nn.Sequential()
            groups = self.exits if i else 1  # all base nets read the same image
            block.add_module("conv", nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1, groups=groups))
            if norm not in RUNNING:
                block.add_module("scaler", Scaler(1 / bases))
            block.add_module("norm", DualNorm2d(outgoing) if norm == "dual" else make_norm(norm, outgoing))
            block.add_module("relu", nn.ReLU(inplace=True))
            if i + 1 < len(sizes):
                block.add_module("pool", nn.MaxPool2d(2))
            self.blocks.append(block)
        self.classifier = make_classifier(sizes[-1] // self.exits, self.exits * num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits of all base nets, shape (H, N, K)."""
        features_NC = self.blocks(x_NCHW).mean(dim=(2, 3))
        features_HNC = features_NC.unflatten(1, (self.exits, -1)).transpose(0, 1)
        weight_HKC = self.classifier.weight.unflatten(0, (self.exits, -1))
        bias_H1K = self.classifier.bias.view(self.exits, 1, -1)
        return torch.baddbmm(bias_H1K, features_HNC, weight_HKC.transpose(1, 2))


def kept_bases(width: float, bases: int) -> int:
    """Return the number of base nets at a width.

    Raises:
        ConfigurationError: there is no base net, or the width is no multiple of 1/B in (0, 1].

    >>> kept_bases(0.25, 8), kept_bases(1.0, 8)
    (2, 8)
    """
    if bases < 1:
        raise ConfigurationError(f"Expected bases of at least 1 but got {bases}")
    kept = round(width * bases)
    if not 1 <= kept <= bases or abs(kept - width * bases) > 1e-6:
        raise ConfigurationError(f"Expected width a multiple of 1/{bases} in (0, 1], the bases, but got {width:g}")
    return kept
