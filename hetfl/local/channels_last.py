"""Images as convolutions on a CPU want them: all channels of a pixel side by side."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def channels_last(x_NCHW: Tensor) -> Tensor:
    """Return the same values with all channels of a pixel side by side."""
    # Not contiguous(): of one channel it says that both layouts are the same, and layers then choose the other.
    return torch.empty_like(x_NCHW, memory_format=torch.channels_last).copy_(x_NCHW)


class ChannelsLast:
    """A hook before a net's ``forward`` that lays images out channels last, on a CPU.

    Layers keep that layout from one to the next; values and shapes are the same. Convolutions and pools take about
    a fifth less time (docs/results.md). A net that cannot take it (``view`` needs channels first) gets its inputs as
    they are: that is tried once in training and once in evaluation, on a copy.

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
