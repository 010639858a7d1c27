"""Similarity of levels and heads: centred kernel alignment of activations, and agreement of predictions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.tree import Tree, length


def linear_cka(x_ND: Tensor, y_NE: Tensor, unbiased: bool = True) -> float:
    r"""Return the linear centred kernel alignment of two sets of features of the same samples, in float64.

    .. math:: \frac{\mathrm{HSIC}(X X^\top, Y Y^\top)}
        {\sqrt{\mathrm{HSIC}(X X^\top, X X^\top)\,\mathrm{HSIC}(Y Y^\top, Y Y^\top)}}

    It is 1 for features that are equal up to rotation and isotropic scaling. The plain estimate (Kornblith, Norouzi,
    Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019) is near 1 also for unrelated
    features if there are more features than samples, which is usual for convolutions. Therefore the default is the
    unbiased estimate (Nguyen, Raghu, Kornblith: Do Wide and Deep Networks Learn the Same Things?, ICLR 2021). It is
    near 0 for unrelated features, and may be slightly negative.

    Args:
        x_ND: features of N samples, N at least 4.
        y_NE: other features of the same samples.
        unbiased: whether to use the unbiased estimate of HSIC.

    Returns:
        The alignment; NaN if the features of one side are equal for all samples.

    Raises:
        ConfigurationError: the numbers of samples differ, or are below 4.
    """
    return _alignment(_gram(x_ND), _gram(y_NE), unbiased)


def activations(net: nn.Module, inputs_N: Tree, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the outputs of layers for given samples, by name: float64 (N, D), all dimensions after N flattened.

    For a layer that is called more than once, the output is that of the last call.

    Args:
        net: the net, in evaluation mode.
        inputs_N: samples in the form that the net takes.
        layers: names of modules, as in ``net.named_modules()``.

    Raises:
        ConfigurationError: the net lacks a module, or the output of a module is not a tensor with a row per sample.
    """
    modules, outputs = dict(net.named_modules()), dict[str, object]()
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ConfigurationError(
            f"Expected names of layers among those of {type(net).__name__} but got {', '.join(map(repr, unknown))}"
        )

    def keep(name: str, output: object) -> None:
        # A copy, because the next layer may change the output in place.
        outputs[name] = output.detach().to(torch.float64, copy=True) if isinstance(output, Tensor) else output

    hooks = [
        modules[name].register_forward_hook(lambda _, inputs, output, name=name: keep(name, output)) for name in layers
    ]
    try:
        with torch.no_grad():
            net(inputs_N)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _rows(outputs.get(name), length(inputs_N), name) for name in layers}


def level_similarity(
    nets: Mapping[str, nn.Module], inputs_N: Tree, layers: Sequence[str] | None = None, unbiased: bool = True
) -> pd.DataFrame:
    """Return the linear CKA of every layer between every two levels.

    Args:
        nets: the net of each level, in evaluation mode, from ``module.submodel(level)`` after a run or from
            :meth:`hetfl.analysis.Snapshot.fill`.
        inputs_N: samples in the form that the nets take, N at least 4.
        layers: names of modules; None: all innermost modules with weights, in the order of the first net.
        unbiased: as for :func:`linear_cka`.

    Returns:
        A row per layer and pair of levels that both have the layer: ``layer``, ``level``, ``other``, ``cka``.

    Raises:
        ConfigurationError: there are fewer than two nets, no net has a layer, or the output of a layer is not a tensor
            with a row per sample.
    """
    if len(nets) < 2:
        raise ConfigurationError(f"Expected at least two levels to compare but got {', '.join(nets) or 'none'}")
    names_of = {level: list(dict(net.named_modules())) for level, net in nets.items()}
    if layers is None:
        layers = list(dict.fromkeys(name for net in nets.values() for name in _weighted(net)))
    missing = [name for name in layers if not any(name in names for names in names_of.values())]
    if missing:
        raise ConfigurationError(f"Expected names of layers but got {', '.join(map(repr, missing))}, which no net has")
    grams = {
        level: {
            name: _gram(features)
            for name, features in activations(net, inputs_N, [n for n in layers if n in names_of[level]]).items()
        }
        for level, net in nets.items()
    }
    rows = [
        (layer, level, other, _alignment(grams[level][layer], grams[other][layer], unbiased))
        for layer in layers
        for level, other in itertools.combinations(nets, 2)
        if layer in grams[level] and layer in grams[other]
    ]
    return pd.DataFrame(rows, columns=["layer", "level", "other", "cka"])


def head_agreement(logits_HNK: Tensor) -> Tensor:
    r"""Return the fraction of samples on which two heads predict the same class: float64 (H, H), symmetric.

    .. math:: A_{ij} = \frac{1}{N} \sum_n [\arg\max_k z_{ink} = \arg\max_k z_{jnk}]

    Raises:
        ConfigurationError: the logits do not have three dimensions.
    """
    if logits_HNK.dim() != 3:
        raise ConfigurationError(
            f"Expected logits of shape (heads, samples, classes) but got {tuple(logits_HNK.shape)}"
        )
    predicted_HN = logits_HNK.argmax(-1)
    return (predicted_HN[:, None] == predicted_HN[None]).double().mean(-1)


def _unbiased_hsic(k_NN: Tensor, l_NN: Tensor) -> Tensor:
    r"""Return the unbiased estimate of the Hilbert-Schmidt independence criterion of two kernel matrices; a scalar.

    .. math:: \frac{1}{N (N - 3)} \Big( \mathrm{tr}(\tilde K \tilde L)
        + \frac{1^\top \tilde K 1 \, 1^\top \tilde L 1}{(N - 1)(N - 2)}
        - \frac{2}{N - 2} 1^\top \tilde K \tilde L 1 \Big)

    with the diagonals of :math:`\tilde K` and :math:`\tilde L` set to zero.

    Song, Smola, Gretton, Bedo, Borgwardt: Feature Selection via Dependence Maximization, JMLR 2012, equation 4.

    Args:
        k_NN: a kernel matrix of N samples, N at least 4.
        l_NN: another kernel matrix of the same samples.
    """
    n = len(k_NN)
    k_NN, l_NN = (matrix - matrix.diag().diag() for matrix in (k_NN, l_NN))
    products = (k_NN * l_NN).sum() + k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2))
    return (products - 2 / (n - 2) * k_NN.sum(0) @ l_NN.sum(0)) / (n * (n - 3))


def _plain_hsic(k_NN: Tensor, l_NN: Tensor) -> Tensor:
    r"""Return the biased estimate of the criterion without its factor :math:`(N - 1)^{-2}`; a scalar.

    .. math:: \mathrm{tr}(K H L H), \qquad H = I - \tfrac{1}{N} 1 1^\top

    Gretton, Bousquet, Smola, Schölkopf: Measuring Statistical Dependence with Hilbert-Schmidt Norms, ALT 2005.

    Args:
        k_NN: a kernel matrix of N samples.
        l_NN: another kernel matrix of the same samples.
    """
    return (_centred(k_NN) * _centred(l_NN)).sum()


def _gram(features_ND: Tensor) -> Tensor:
    # Centring does not change HSIC, and avoids a loss of precision for features far from 0. The first sample is
    # subtracted before, so that features that are equal for all samples become exactly 0.
    shifted = features_ND.double() - features_ND[0].double()
    centred = shifted - shifted.mean(0)
    return centred @ centred.T


def _centred(matrix_NN: Tensor) -> Tensor:
    return matrix_NN - matrix_NN.mean(0) - matrix_NN.mean(1, keepdim=True) + matrix_NN.mean()


def _alignment(k_NN: Tensor, l_NN: Tensor, unbiased: bool) -> float:
    if len(k_NN) != len(l_NN):
        raise ConfigurationError(f"Expected activations of the same samples but got {len(k_NN)} and {len(l_NN)} rows")
    if len(k_NN) < 4:
        raise ConfigurationError(f"Expected at least 4 samples to compare activations but got {len(k_NN)}")
    estimate = _unbiased_hsic if unbiased else _plain_hsic
    return float(estimate(k_NN, l_NN) / (estimate(k_NN, k_NN) * estimate(l_NN, l_NN)).sqrt())


def _weighted(net: nn.Module) -> list[str]:
    """Return the names of the innermost modules of a net that have weights."""
    return [
        name for name, part in net.named_modules() if not list(part.children()) and list(part.parameters(recurse=False))
    ]


def _rows(output: object, samples: int, name: str) -> Tensor:
    if isinstance(output, Tensor) and output.dim() > 1 and len(output) == samples:
        return output.flatten(1)
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ConfigurationError(f"Expected {samples} rows, one per sample, from layer {name!r} but got {got}")
