"""A residual net whose blocks have learnable step sizes, as in NeFL (Kang et al., 2023, arXiv 2308.07761)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.models.layers import ConvNorm, Norm, kept_stages, make_classifier, scaled
from hetfl.models.multi_exit_resnet import BasicBlock, conv


class StepBlock(BasicBlock):
    r"""A basic block whose residual is multiplied by a learnable step size s, at first 1.

    .. math:: y = \mathrm{ReLU}(\mathrm{skip}(x) + s \cdot f(x))

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        stride: stride of the first convolution.
        norm: kind of norm layer.
        width: ratio for the Scalers.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: Norm, width: float) -> None:
        super().__init__(incoming, outgoing, stride, norm, width)
        self.step = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape (N, outgoing, H/stride, W/stride)."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.step * self.second(F.relu(self.first(x))) + skip)


class StepResNet(nn.Module):
    """3x3 stem, stages of blocks with step sizes, global average pool, linear.

    The depth is the number of blocks in every stage. A block that a level lacks passes its input on: it is the block
    with step size 0, and the levels nest. Every stage but the first halves height and width. Parameters with the
    defaults:

    ===== ======= =======
    width depth 1 depth 2
    ===== ======= =======
    1      77 757 174 976
    3/4    44 017  98 788
    1/2    19 813  44 232
    1/4     5 145  11 308
    ===== ======= =======

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        hidden: channels of the stages at width 1.
        blocks: blocks per stage at full depth.
        norm: kind of norm layer.
        depth: number of blocks per stage; None: all of them.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a depth or width out of range.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        hidden: Sequence[int] = (16, 32, 64),
        blocks: int = 2,
        norm: Norm = "static_batch",
        depth: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        depth = kept_stages(depth, blocks)
        channels = [scaled(size, width) for size in hidden]
        self.stem = ConvNorm(conv(in_channels, channels[0], 3), norm, width)
        self.stages = nn.Sequential()
        for i, outgoing in enumerate(channels):
            stage = nn.Sequential(StepBlock(channels[max(i - 1, 0)], outgoing, 2 if i else 1, norm, width))
            stage.extend(StepBlock(outgoing, outgoing, 1, norm, width) for _ in range(depth - 1))
            self.stages.append(stage)
        self.classifier = make_classifier(channels[-1], num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, K)."""
        features_NC = self.stages(F.relu(self.stem(x_NCHW))).mean(dim=(2, 3))
        logits_NK: Tensor = self.classifier(features_NC)
        return logits_NK
