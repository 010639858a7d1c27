"""HeteroFL's convolutional net for MNIST (Diao, Ding, Tarokh: HeteroFL, ICLR 2021, appendix)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from hetfl.models.layers import Norm, Scaler, make_classifier, make_norm, scaled


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, Scaler, norm, ReLU, max pool (not after the last); global average pool; linear.

    With the defaults it has 1 556 874, 391 370, 98 922, 25 274 and 6 594 parameters at widths 1, 1/2, 1/4, 1/8, 1/16.

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        hidden: channels of the blocks at width 1.
        norm: kind of norm layer.
        width: width ratio in (0, 1].
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden: Sequence[int] = (64, 128, 256, 512),
        norm: Norm = "static_batch",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = [in_channels, *(scaled(size, width) for size in hidden)]
        self.blocks = nn.Sequential()
        for i, (incoming, outgoing) in enumerate(itertools.pairwise(channels)):
            block = nn.Sequential()
            block.add_module("conv", nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1))
            block.add_module("scaler", Scaler(width))
            block.add_module("norm", make_norm(norm, outgoing))
            block.add_module("relu", nn.ReLU(inplace=True))
            if i + 2 < len(channels):
                block.add_module("pool", nn.MaxPool2d(2))
            self.blocks.append(block)
        self.classifier = make_classifier(channels[-1], num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, K)."""
        features_NC = self.blocks(x_NCHW).mean(dim=(2, 3))
        logits_NK: Tensor = self.classifier(features_NC)
        return logits_NK
