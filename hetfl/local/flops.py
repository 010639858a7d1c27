"""Floating-point operations per sample, by torch's counter."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hetfl.models.static_batch_norm import gathering
from hetfl.tree import Tree, length


def _convolution_backward(
    gradient: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *settings: Any, out_shape: object
) -> int:
    """Return the FLOPs of a convolution's backward pass from shapes: per gradient, as many as in the forward pass.

    torch's formula counts the weight's gradient as if every output channel used every input channel. That is ``groups``
    times too many: 512 times in a depthwise convolution of 512 channels.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    positions = (inputs if transposed else gradient)[2:]
    return 2 * inputs[0] * math.prod(positions) * math.prod(weight) * int(sum(wanted[:2]))


FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}
"""Operations whose FLOPs are not counted by torch's formula."""


def layer_shares(net: nn.Module, inputs_N: Tree) -> dict[str, float]:
    """Return each weighted layer's share of the FLOPs of a forward pass, by the layer's name.

    The FLOPs of weighted layers within a layer are theirs alone.

    Args:
        net: the net; it is not changed.
        inputs_N: a few samples, as the net gets them.
    """
    copied = copy.deepcopy(net)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter, gathering(copied), torch.no_grad():
        copied(inputs_N)
    counts, total = counter.get_flop_counts(), counter.get_total_flops()
    weighted = [name for name, layer in copied.named_modules() if any(p.dim() > 1 for p in layer.parameters(False))]
    flops = {name: sum(counts.get(f"{type(copied).__name__}.{name}", {}).values()) for name in weighted}
    own = dict(flops)
    for name in weighted:
        if above := [each for each in weighted if each and name.startswith(f"{each}.")]:
            own[max(above, key=len)] -= flops[name]
    return {name: each / total for name, each in own.items()}


def flops_per_sample(net: nn.Module, inputs_N: Tree) -> tuple[float, float]:
    """Return the FLOPs (2 per multiply-add) per sample of a forward pass, and of a forward and backward pass.

    Convolutions and matrix products count; norms, activations, pools and upsampling do not.

    Args:
        net: the net, with one exit or several; its parameters and gradients are not changed.
        inputs_N: a few samples, as the net gets them.
    """
    copied = copy.deepcopy(net)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter, gathering(copied):
        outputs = copied(inputs_N)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    return forward / length(inputs_N), counter.get_total_flops() / length(inputs_N)
