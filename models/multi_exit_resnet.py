"""DepthFL's ResNet-18 for 32x32 images, an exit per stage (Kim, Yu, Kim, Moon: DepthFL, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.models.exits import AttentionGate, Bottleneck, Stage, exit_logits
from hetfl.models.layers import ConvNorm, Norm, kept_stages, scaled


def conv(incoming: int, outgoing: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias whose padding keeps height and width, except for the stride."""
    return nn.Conv2d(incoming, outgoing, kernel, stride=stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """3x3 convolution, Scaler, norm, ReLU; the same without ReLU; plus the skip; ReLU.

    The skip is the input, or its 1x1 convolution, Scaler and norm where the shape changes (He et al., CVPR 2016).

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        stride: stride of the first convolution.
        norm: kind of norm layer.
        width: ratio for the Scalers.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: Norm, width: float) -> None:
        super().__init__()
        self.first = ConvNorm(conv(incoming, outgoing, 3, stride), norm, width)
        self.second = ConvNorm(conv(outgoing, outgoing, 3), norm, width)
        self.shortcut: ConvNorm | None = None
        if stride != 1 or incoming != outgoing:
            self.shortcut = ConvNorm(conv(incoming, outgoing, 1, stride), norm, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape (N, outgoing, H/stride, W/stride)."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.second(F.relu(self.first(x))) + skip)


class MultiExitResNet(nn.Module):
    """3x3 stem, stages of two basic blocks, and after each stage an exit with a linear layer.

    Every exit but the last gates the output of its stage (:class:`~hetfl.models.exits.AttentionGate`). It then has one
    :class:`~hetfl.models.exits.Bottleneck` per remaining stage, which halves height and width and has the channels of
    that stage. Therefore all classifiers have the same number of features. With the defaults the net has 479 652,
    1 347 336, 3 838 316 and 12 283 344 parameters at depths 1 to 4, as in the authors' code.

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        hidden: channels of the stages at width 1.
        norm: kind of norm layer; the paper has running-average batch norm.
        depth: number of stages; None: all of them.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: a depth or width out of range.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 100,
        hidden: Sequence[int] = (64, 128, 256, 512),
        norm: Norm = "batch",
        depth: int | None = None,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        depth = kept_stages(depth, len(hidden))
        channels = [scaled(size, width) for size in hidden]
        self.stem = ConvNorm(conv(in_channels, channels[0], 3), norm, width)
        self.stages, self.exits = nn.ModuleList(), depth
        for i in range(depth):
            incoming, outgoing, stride = channels[max(i - 1, 0)], channels[i], 2 if i else 1
            trunk = nn.Sequential(
                BasicBlock(incoming, outgoing, stride, norm, width), BasicBlock(outgoing, outgoing, 1, norm, width)
            )
            # The layers of an exit must not depend on the depth: only the last stage of the full net has none.
            exit = nn.Sequential()
            if i + 1 < len(channels):
                exit.append(AttentionGate(outgoing, norm, width))
                for before, after in zip(channels[i:], channels[i + 1 :], strict=False):
                    exit.append(Bottleneck(before, after, norm, width))
            self.stages.append(Stage(trunk, exit, channels[-1], num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits of all exits, shape (H, N, K), the shallowest first; H is the depth."""
        return exit_logits(self.stages, F.relu(self.stem(x_NCHW)))
