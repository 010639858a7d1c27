"""A small convolutional net for MNIST and Digits: HeteroFL's ConvNet with an exit per block, as in DepthFL."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from hetfl.models.exits import SeparableConv, Stage, exit_logits
from hetfl.models.layers import ConvNorm, Norm, kept_stages, scaled


class MultiExitConvNet(nn.Module):
    """Blocks of 3x3 convolution, Scaler, norm, ReLU, max pool (not after the last), and an exit after each block.

    The trunk and the last exit (global average pool and linear) are those of :class:`~hetfl.models.ConvNet`. The other
    exits have a :class:`~hetfl.models.exits.SeparableConv` before the pool, so that all classifiers have the same
    number of features. All classifiers have PyTorch's default initialisation, as in DepthFL's code. Three pools reduce
    an 8x8 image to one pixel. Parameters with the defaults:

    ===== ======= ======= ======= =========
    width depth 1 depth 2 depth 3   depth 4
    ===== ======= ======= ======= =========
    1      40 266 187 220 622 430 1 808 744
    1/2    11 946  50 612 161 726   459 976
    1/4     3 930  14 564  43 502   118 904
    1/8     1 458   4 604  12 422    31 696
    1/16      606   1 640   3 890     8 924
    ===== ======= ======= ======= =========

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        hidden: channels of the blocks at width 1.
        norm: kind of norm layer.
        depth: number of blocks; None: all of them.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a depth or width out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden: Sequence[int] = (64, 128, 256, 512),
        norm: Norm = "static_batch",
        depth: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        depth = kept_stages(depth, len(hidden))
        channels = [in_channels, *(scaled(size, width) for size in hidden)]
        self.stages, self.exits = nn.ModuleList(), depth
        for i, (incoming, outgoing) in enumerate(itertools.pairwise(channels[: depth + 1])):
            trunk = ConvNorm(nn.Conv2d(incoming, outgoing, kernel_size=3, padding=1), norm, width)
            trunk.add_module("relu", nn.ReLU(inplace=True))
            exit = nn.Sequential()
            # The last block of the full net, not of this depth: the layers of a stage must not depend on the depth.
            if i + 2 < len(channels):
                trunk.add_module("pool", nn.MaxPool2d(2))
                exit.append(SeparableConv(outgoing, channels[-1], 1, norm, width))
            self.stages.append(Stage(trunk, exit, channels[-1], num_classes))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits of all exits, shape (H, N, K), the shallowest first; H is the depth."""
        return exit_logits(self.stages, x_NCHW)
