"""Floating-point operations per sample, by torch's own counter."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hetfl.models.static_batch_norm import gathering


def flops_per_sample(net: nn.Module, inputs_N: Tensor) -> tuple[float, float]:
    """Return the FLOPs (2 per multiply-add) of a forward pass, and of forward and backward, for one sample.

    Args:
        net: the net; its parameters and gradients are left as they were.
        inputs_N: a few samples, as the net gets them.
    """
    copied = copy.deepcopy(net)
    counts = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter, gathering(copied):
            outputs = copied(inputs_N)
            if backward:
                outputs.sum().backward()
        counts.append(counter.get_total_flops() / len(inputs_N))
    return counts[0], counts[1]
