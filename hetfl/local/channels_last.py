"""Images as convolutions on a CPU want them: all channels of a pixel side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.types import Layout


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

    Layers keep that layout from one to the next; values and shapes are the same. Convolutions and pools take about
    a fifth less time (docs/results.md). A net that cannot take it (``view`` needs channels first) in training or in
    evaluation gets its inputs as they are: that is tried before its first images, on a copy.

    Args:
        lay_out: called once, before the first images of a net that can take it: its weights may be laid out too.

    Attributes:
        accepted: whether the net can take it; None: not known yet.
    """

    def __init__(self, lay_out: Callable[[], None] | None = None) -> None:
        self.accepted: bool | None = None
        self._lay_out = lay_out

    def __call__(self, net: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments that ``forward`` gets; None: as they are."""
        inputs = args[0] if args else None
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or inputs.device.type != "cpu":
            return None
        if self.accepted is None:
            lay_out, self._lay_out = self._lay_out, None
            self.accepted = all(_takes(net, training, args) for training in (True, False))
            if self.accepted and lay_out is not None:
                lay_out()
        return (channels_last(inputs), *args[1:]) if self.accepted else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lay_out": None}  # a net's copy is nobody's resident


def without_layout(net: nn.Module) -> nn.Module:
    """Return a copy of a net that computes on inputs as they are laid out: to the bits of a net that has no hook."""
    found = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    for number, hook in list(found._forward_pre_hooks.items()):
        if isinstance(hook, ChannelsLast):
            del found._forward_pre_hooks[number]
    return found


def _takes(net: nn.Module, training: bool, args: tuple[Any, ...]) -> bool:
    """Return whether a net runs on images and with weights laid out channels last, if it runs at all."""
    trial = without_layout(net).train(training)
    laid_out = copy.deepcopy(trial).to(memory_format=torch.channels_last)
    # Whatever is wrong beside the layout is raised where it belongs.
    return _runs(laid_out, channels_last(args[0]), *args[1:]) or not _runs(trial, *args)


def _runs(net: nn.Module, *args: Any) -> bool:
    """Return whether a net runs on such inputs; torch's random numbers stay as they were."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            net(*args)
        except Exception:  # whatever the net's own code raises
            return False
    return True
