"""The building blocks of nets with an exit per stage (Kim et al.: DepthFL, ICLR 2023).

A net of depth d has the first d stages of the full net, each with its exit. Everything that belongs to a stage is
registered inside the stage. Therefore a tensor has the same name at every depth, and the names of a shallower net are
the first names of a deeper net.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.models.layers import ConvNorm, Norm, make_norm


class SeparableConv(nn.Sequential):
    """3x3 depthwise convolution, 1x1 convolution, Scaler, norm, ReLU.

    The filter of a single channel does not depend on the width, so a Scaler follows only the 1x1 convolution. The
    convolutions have no biases.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        stride: stride of the 3x3 convolution.
        norm: kind of norm layer.
        width: ratio for the Scaler.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, norm: Norm, width: float) -> None:
        super().__init__()
        depthwise = nn.Conv2d(incoming, incoming, kernel_size=3, stride=stride, padding=1, groups=incoming, bias=False)
        self.add_module("depthwise", depthwise)
        self.add_module("pointwise", ConvNorm(nn.Conv2d(incoming, outgoing, 1, bias=False), norm, width))
        self.add_module("relu", nn.ReLU(inplace=True))


class Bottleneck(nn.Sequential):
    """Two separable convolutions: the first halves height and width, the second changes the channels.

    Args:
        incoming: channels of the input.
        outgoing: channels of the output.
        norm: kind of norm layer.
        width: ratio for the Scalers.
    """

    def __init__(self, incoming: int, outgoing: int, norm: Norm, width: float) -> None:
        super().__init__()
        self.add_module("reduce", SeparableConv(incoming, incoming, 2, norm, width))
        self.add_module("expand", SeparableConv(incoming, outgoing, 1, norm, width))


class AttentionGate(nn.Module):
    r"""Multiply every activation by a gate in (0, 1) that is computed from its neighbourhood.

    .. math:: y = x \odot \sigma(\mathrm{upsample}(\mathrm{ReLU}(\mathrm{norm}(\mathrm{bottleneck}(x)))))

    Upsampling is bilinear, to the size of ``x`` (a factor of 2 for even sizes). In a channel whose weights are 0, the
    gate is 1/2, and the output is 0 because ``x`` is 0.

    Args:
        channels: channels of input and output.
        norm: kind of norm layer.
        width: ratio for the Scalers.
    """

    def __init__(self, channels: int, norm: Norm, width: float) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(channels, channels, norm, width)
        self.norm = make_norm(norm, channels)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the gated activations, shape (N, C, H, W)."""
        gate = F.relu(self.norm(self.bottleneck(x_NCHW)))
        gate = F.interpolate(gate, size=x_NCHW.shape[-2:], mode="bilinear", align_corners=False)
        return x_NCHW * torch.sigmoid(gate)


class Stage(nn.Module):
    """A section of the trunk, and the exit on its output: further layers, global average pool, linear.

    Args:
        trunk: the section of the trunk; its output is the input of the next stage.
        exit: the layers of the exit before the pool; may be empty.
        features: output channels of ``exit``.
        num_classes: classes K.
    """

    def __init__(self, trunk: nn.Module, exit: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.exit = exit
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the trunk and the logits of the exit, shape (N, K)."""
        out = self.trunk(x_NCHW)
        return out, self.classifier(self.exit(out).mean(dim=(2, 3)))


def exits_of(net: nn.Module) -> int | None:
    """Return the number of exits that a net declares by an attribute ``exits``; None: the net has one plain output.

    The outputs of a net that declares H exits have a leading dimension of H, the shallowest exit first.
    """
    exits: int | None = getattr(net, "exits", None)
    return exits


def exit_logits(stages: Iterable[nn.Module], x: Tensor, *context: object) -> Tensor:
    """Return the logits of the exits of all stages, shape (H, N, K), the shallowest first.

    Args:
        stages: the stages in order.
        x: input of the first stage.
        context: further arguments of every stage.
    """
    logits = []
    for stage in stages:
        x, logits_NK = stage(x, *context)
        logits.append(logits_NK)
    return torch.stack(logits)
