"""Rewrites a net to need fewer passes over its activations: with many clients at once, memory limits the speed."""

from __future__ import annotations

import itertools

from torch import nn

from hetfl.models import Scaler
from hetfl.models.static_batch_norm import StaticBatchNorm2d


def rewrite(net: nn.Module) -> None:
    r"""Replace layers of every ``nn.Sequential`` in a net, in place, by equivalent layers with less work in training.

    A Scaler before static batch norm becomes part of the norm, since batch norm undoes a scale except for ε:

    .. math:: \frac{x/\rho - \mu/\rho}{\sqrt{\sigma^2/\rho^2 + \epsilon}} =
        \frac{x - \mu}{\sqrt{\sigma^2 + \rho^2 \epsilon}}

    A ReLU before a max pool is moved behind it, where it has a quarter of the entries; both orders give the same
    values. The rewritten net can only be used for training.
    """
    for module in net.modules():
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            for first, second in itertools.pairwise(list(module._modules)):
                _rewrite_pair(module, first, second)


def _rewrite_pair(module: nn.Sequential, first: str, second: str) -> None:
    one, two = module._modules[first], module._modules[second]
    if type(one) is Scaler and type(two) is StaticBatchNorm2d:
        two.eps *= one.width**2
        module._modules[first] = nn.Identity()
    elif type(one) is nn.ReLU and type(two) is nn.MaxPool2d and not two.return_indices:
        module._modules[first], module._modules[second] = two, one
