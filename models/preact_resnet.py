"""Pre-activation ResNet for 32x32 images (He et al., Identity Mappings, ECCV 2016), width-scaled as in HeteroFL."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.models.layers import Norm, Scaler, make_classifier, make_norm, scaled

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks per stage, by the net's number of layers."""


class PreActBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; the skip is the raw input, or a 1x1 convolution of the first activation.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        stride: stride of the first convolution.
        norm: kind of norm layer.
        width: ratio for the Scalers, which precede both norm layers.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: Norm, width: float) -> None:
        super().__init__()
        self.scaler = Scaler(width)
        self.norm1 = make_norm(norm, incoming)
        self.conv1 = nn.Conv2d(incoming, outgoing, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = make_norm(norm, outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, kernel_size=3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or incoming != outgoing:
            self.shortcut = nn.Conv2d(incoming, outgoing, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, shape (N, outgoing, H/stride, W/stride)."""
        out = F.relu(self.norm1(self.scaler(x)))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.norm2(self.scaler(out))))
        summed: Tensor = out + skip
        return summed


class PreActResNet(nn.Module):
    """3x3 stem, four stages of basic blocks, norm, ReLU, global average pool, linear.

    Depth 18 with 10 classes has 11 172 170, 2 796 714, 701 018, 176 178 and 44 510 parameters at widths
    1, 1/2, 1/4, 1/8, 1/16.

    Args:
        in_channels: channels of the input images; never scaled.
        num_classes: classes K; never scaled.
        layers: 18 or 34.
        hidden: channels of the four stages at width 1.
        norm: kind of norm layer.
        width: width ratio in (0, 1].

    Raises:
        ConfigurationError: ``layers`` is not 18 or 34, or ``hidden`` does not have four sizes.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        layers: int = 18,
        hidden: Sequence[int] = (64, 128, 256, 512),
        norm: Norm = "static_batch",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if layers not in BLOCKS:
            raise ConfigurationError(f"Expected layers in {tuple(BLOCKS)} but got {layers}")
        if len(hidden) != len(BLOCKS[layers]):
            raise ConfigurationError(f"Expected {len(BLOCKS[layers])} sizes in hidden but got {len(hidden)}")
        channels = [scaled(size, width) for size in hidden]
        self.stem = nn.Conv2d(in_channels, channels[0], kernel_size=3, padding=1, bias=False)
        self.stages = nn.Sequential()
        incoming = channels[0]
        for stage, (outgoing, blocks) in enumerate(zip(channels, BLOCKS[layers], strict=True)):
            strides = [2 if stage else 1] + [1] * (blocks - 1)
            stack = nn.Sequential()
            for stride in strides:
                stack.append(PreActBlock(incoming, outgoing, stride, norm, width))
                incoming = outgoing
            self.stages.append(stack)
        self.scaler = Scaler(width)
        self.norm = make_norm(norm, incoming)
        self.classifier = make_classifier(incoming, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, K)."""
        out = self.stages(self.stem(x_NCHW))
        features_NC = F.relu(self.norm(self.scaler(out))).mean(dim=(2, 3))
        logits_NK: Tensor = self.classifier(features_NC)
        return logits_NK
