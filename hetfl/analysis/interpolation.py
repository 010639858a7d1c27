"""The loss between two nets: on the straight line from the weights of one to those of the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.analysis.quality import check_classes
from hetfl.errors import ConfigurationError
from hetfl.models.static_batch_norm import gathering
from hetfl.tree import Tree


def loss_path(
    net: nn.Module,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    inputs_N: Tree,
    targets_N: Tensor,
    points: int = 11,
) -> pd.DataFrame:
    r"""Return loss and accuracy at equal steps between two nets of a classification.

    .. math:: \theta_\alpha = (1 - \alpha)\, \theta_0 + \alpha\, \theta_1, \qquad \alpha = 0, \dots, 1

    Static norm layers normalise by the batch, which is all samples: statistics of either end would not be right in
    between. Tensors that are not of floating point, such as numbers of batches, stay those of α = 0.

    Args:
        net: a net with outputs (N, K); it is not changed.
        start: tensors of the net by name at α = 0. Tensors that are not among them stay those of ``net``.
        end: the same at α = 1.
        inputs_N: samples in the form that the net takes.
        targets_N: classes.
        points: number of points on the line, both ends included.

    Returns:
        A row per point: ``alpha``, ``loss`` (mean cross-entropy), ``accuracy``.

    Raises:
        ConfigurationError: start and end have other names or shapes than each other or the net, or the outputs and
            targets are not those of a classification.
    """
    net = copy.deepcopy(net)
    tensors = {name: tensor for name, tensor in net.state_dict(keep_vars=True).items() if name in start}
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (start, end, tensors)]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise ConfigurationError("Expected both ends to have the same tensors of the net but got other names or shapes")
    rows = []
    for alpha in torch.linspace(0, 1, points).tolist():
        with torch.no_grad(), gathering(net):
            for name, tensor in tensors.items():
                first, last = start[name].to(tensor), end[name].to(tensor)
                tensor.copy_(torch.lerp(first, last, alpha) if tensor.is_floating_point() else first)
            logits_NK = net(inputs_N)
        check_classes(logits_NK, targets_N)
        right = float((logits_NK.argmax(-1) == targets_N).double().mean())
        rows.append({"alpha": alpha, "loss": float(F.cross_entropy(logits_NK, targets_N)), "accuracy": right})
    return pd.DataFrame(rows)


def loss_barrier(path: pd.DataFrame) -> float:
    r"""Return the height of the loss above the line between its ends: 0 if a path has no barrier.

    .. math:: \max_\alpha\, L(\theta_\alpha) - (1 - \alpha) L(\theta_0) - \alpha L(\theta_1)

    Frankle, Dziugaite, Roy, Carbin: Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020, where the
    line is the mean of both ends.

    Args:
        path: the result of :func:`loss_path`.

    >>> round(loss_barrier(pd.DataFrame({"alpha": [0.0, 0.5, 1.0], "loss": [1.0, 2.5, 2.0]})), 6)
    1.0
    """
    first, last = float(path["loss"].iloc[0]), float(path["loss"].iloc[-1])
    return float((path["loss"] - (first + path["alpha"] * (last - first))).max())
