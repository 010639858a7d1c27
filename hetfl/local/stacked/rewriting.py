"""The same net in fewer passes over its activations: for training many clients at once memory is the limit."""

from __future__ import annotations

import itertools

from torch import nn

from hetfl.models import Scaler
from hetfl.models.static_batch_norm import StaticBatchNorm2d


def rewrite(net: nn.Module) -> None:
    r"""Change the layers of every ``nn.Sequential`` in a net, in place, into ones that train alike with less work.

    A Scaler before static batch norm becomes part of it, since batch norm undoes a scale except for ε:

    .. math:: \frac{x/\rho - \mu/\rho}{\sqrt{\sigma^2/\rho^2 + \epsilon}} =
        \frac{x - \mu}{\sqrt{\sigma^2 + \rho^2 \epsilon}}

    and ReLU changes places with a max pool behind it, which leaves it a quarter of the entries: both orders choose the
    same ones. The net is then good for training only.
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
