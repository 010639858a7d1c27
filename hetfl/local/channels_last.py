"""Images, and weights, as convolutions on a CPU want them: all channels of a pixel side by side."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.layout import Layout


def channels_last(x_NCHW: Tensor) -> Tensor:
    """Return the same values with all channels of a pixel side by side."""
    # Not contiguous(): of one channel it says that both layouts are the same, and layers then choose the other.
    return torch.empty_like(x_NCHW, memory_format=torch.channels_last).copy_(x_NCHW)


class ChannelsLastLayout(Layout):
    """A layout whose tensors of four dimensions, (filters, channels, height, width), have their channels last.

    A convolution of images that are laid out so wants its weights so, and copies them in every call if they are not.
    """

    @staticmethod
    def shaped(part: Tensor, shape: Sequence[int]) -> Tensor:  # noqa: D102
        if not _differs(shape):
            return Layout.shaped(part, shape)
        filters, channels, height, width = shape
        return part.view((*part.shape[:-1], filters, height, width, channels)).movedim(-1, -3)

    @staticmethod
    def flat(tensor: Tensor, shape: Sequence[int]) -> Tensor:  # noqa: D102
        return Layout.flat(tensor.movedim(-3, -1) if _differs(shape) else tensor, shape)


def _differs(shape: Sequence[int]) -> bool:
    # Of one channel or one pixel both orders are the same: strides of their own would only mislead layers.
    return len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1


class ChannelsLast:
    """A hook before a net's ``forward`` that lays images out channels last, on a CPU.

    Layers keep that layout from one to the next; values and shapes are the same, and convolutions and pools take less
    time. A net that cannot take it (``view`` needs channels first) gets its inputs as they are: that is tried once in
    training and once in evaluation, on a copy.

    Attributes:
        accepted: whether the net can take it in training (True) and in evaluation (False), as far as that is known.
    """

    def __init__(self) -> None:
        self.accepted: dict[bool, bool] = {}

    def __call__(self, net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments that ``forward`` gets; None: as they are."""
        inputs = args[0] if args else None
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.device.type != "cpu":
            return None
        if not self.accepted.get(net.training, True):
            return None
        inputs_NCHW = channels_last(inputs)
        if net.training not in self.accepted:
            self.accepted[net.training] = _accepts(net, inputs_NCHW, *args[1:])
        return (inputs_NCHW, *args[1:]) if self.accepted[net.training] else None


def without_layout(net: nn.Module) -> nn.Module:
    """Return a copy of a net that computes on inputs as they are laid out: to the bits of a net that has no hook."""
    found = copy.deepcopy(net)
    for number, hook in list(found._forward_pre_hooks.items()):
        if isinstance(hook, ChannelsLast):
            del found._forward_pre_hooks[number]
    return found


def _accepts(net: nn.Module, *args: Any) -> bool:
    """Return whether a net runs on such inputs; its buffers and torch's random numbers stay as they were."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            without_layout(net)(*args)
        except Exception:  # whatever is wrong beside the layout is raised again where it belongs
            return False
    return True
