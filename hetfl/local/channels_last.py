"""Channels-last memory layout of images and weights, which convolutions on a CPU need for full speed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.layout import Layout

FEWEST_STRIDED = 8
"""Fewest input channels of strided 1x1 convolutions in a net that gets channels-last images."""


def channels_last(x_NCHW: Tensor) -> Tensor:
    """Return the same values in channels-last layout: all channels of a pixel lie side by side."""
    # Not contiguous(): for one channel it treats both layouts as the same, and layers then choose channels first.
    return torch.empty_like(x_NCHW, memory_format=torch.channels_last).copy_(x_NCHW)


class ChannelsLastLayout(Layout):
    """A layout whose tensors of four dimensions, (filters, channels, height, width), have their channels last.

    A convolution of channels-last images needs channels-last weights; it copies weights of another layout in each call.
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
    # With one channel or one pixel both orders are the same; channels-last strides would only mislead layers.
    return len(shape) == 4 and shape[1] > 1 and shape[2] * shape[3] > 1


class ChannelsLast:
    """A hook before a net's ``forward`` that converts images to channels-last layout, on a CPU.

    Layers pass the layout on to the next layer. Values and shapes are the same, and convolutions and pools take less
    time. A net that fails on this layout (``view`` needs channels first) gets its inputs unchanged: the hook tries a
    copy of the net once in training and once in evaluation.

    Attributes:
        accepted: whether the net accepts the layout, by ``net.training``; a mode that was not tried yet is missing.
    """

    def __init__(self) -> None:
        self.accepted: dict[bool, bool] = {}

    def __call__(self, net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments for ``forward``; None: unchanged."""
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
    """Return a copy of a net without :class:`ChannelsLast` hooks, so that it computes on inputs in their layout."""
    copied = copy.deepcopy(net)
    for number, hook in list(copied._forward_pre_hooks.items()):
        if isinstance(hook, ChannelsLast):
            del copied._forward_pre_hooks[number]
    return copied


def _crashes(net: nn.Module) -> bool:
    """Return whether the backward pass of a net may crash in this layout.

    That of torch 2.15 overwrites memory for a strided 1x1 convolution of up to six channels on an AMD processor.
    """
    convolutions = (layer for layer in net.modules() if isinstance(layer, nn.Conv2d))
    strided = (layer for layer in convolutions if layer.kernel_size == (1, 1) and max(layer.stride) > 1)
    return any(layer.in_channels < FEWEST_STRIDED for layer in strided)


def _accepts(net: nn.Module, *args: Any) -> bool:
    """Return whether a net runs on these inputs; its buffers and torch's random state do not change."""
    if _crashes(net):
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            without_layout(net)(*args)
        except Exception:  # an error with another cause is raised again by the net's own call
            return False
    return True
