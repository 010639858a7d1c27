"""What nets with an exit per stage are made of (Kim et al.: DepthFL, ICLR 2023).

A net of depth d has the first d stages of the full one, each with its exit. Whatever belongs to a stage is registered
inside it, so a tensor has the same name at every depth, and a shallower net's names are the first of a deeper one's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.models.layers import ConvNorm, Norm, make_norm


class SeparableConv(nn.Sequential):
    """3x3 convolution of every channel by itself, 1x1 convolution, Scaler, norm, ReLU.

    A channel's own filter depends on no width, so only the 1x1 convolution is scaled. No convolution has a bias.

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
    r"""Weight every activation by what its neighbourhood says about it.

    .. math:: y = x \odot \sigma(\mathrm{upsample}(\mathrm{ReLU}(\mathrm{norm}(\mathrm{bottleneck}(x)))))

    Upsampling is bilinear and to the size of ``x``, which is a factor of 2 where that is even. A channel without
    weights has the gate 1/2, and stays 0 because ``x`` is 0 there.

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
    """A piece of the trunk, and the exit that reads its output: layers of its own, global average pool, linear.

    Args:
        trunk: what the next stage goes on from.
        exit: the exit's own layers before the pool; may be empty.
        features: channels that come out of ``exit``.
        num_classes: classes K.
    """

    def __init__(self, trunk: nn.Module, exit: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.exit = exit
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trunk's output and the exit's logits, shape (N, K)."""
        out = self.trunk(x_NCHW)
        return out, self.classifier(self.exit(out).mean(dim=(2, 3)))


def exits_of(net: nn.Module) -> int | None:
    """Return how many exits a net has, if it declares them by an attribute ``exits``; None: one, and not as a list.

    The outputs of a net that declares H exits have a leading dimension of H, the shallowest exit first.
    """
    exits: int | None = getattr(net, "exits", None)
    return exits


def exit_logits(stages: Iterable[nn.Module], x: Tensor, *context: object) -> Tensor:
    """Return the logits of all stages' exits, shape (H, N, K), the shallowest first.

    Args:
        stages: the stages in order.
        x: input of the first one.
        context: what every stage is given beside its input.
    """
    logits = []
    for stage in stages:
        x, logits_NK = stage(x, *context)
        logits.append(logits_NK)
    return torch.stack(logits)
