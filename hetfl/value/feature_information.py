"""How much the features of a client's samples tell about their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.question import ClientProbe, ClientView
from hetfl.value.data_value import DataValue, single
from hetfl.value.features import FeatureQuestion, classes_of, projected


def entropy(counts: Tensor) -> float:
    r"""Return the entropy of counts in nats, with the correction :math:`(m - 1)/(2 n)` for m occupied cells.

    Miller: Note on the bias of information estimates, 1955.

    >>> round(entropy(torch.tensor([5, 5, 0])), 6)  # log 2 + 1/20
    0.743147
    """
    occupied = counts[counts > 0].double()
    shares = occupied / occupied.sum()
    return float(-(shares * shares.log()).sum() + (len(occupied) - 1) / (2.0 * float(occupied.sum())))


def bins_of(values_n: Tensor, bins: int) -> Tensor:
    """Return the bin of each value, int64, shape (n,): bins of about equally many values; equal values are in one."""
    edges = torch.quantile(values_n, torch.arange(1, bins, dtype=values_n.dtype) / bins)
    return torch.bucketize(values_n, edges.unique(), right=True)


def information(values_n: Tensor, labels_n: Tensor, bins: int) -> float:
    """Return the mutual information of a feature's bins and labels in nats, with corrected entropies.

    Args:
        values_n: of a feature, float, shape (n,).
        labels_n: int64, shape (n,).
        bins: number of bins.
    """
    binned_n = bins_of(values_n, bins)
    pairs_n = binned_n * (int(labels_n.max()) + 1) + labels_n
    return entropy(binned_n.bincount()) + entropy(labels_n.bincount()) - entropy(pairs_n.bincount())


@dataclass(frozen=True)
class Informative(FeatureQuestion):
    """The mean mutual information of a client's features and labels: one number.

    Attributes:
        bins: number of bins of each feature.
    """

    bins: int

    @property
    def size(self) -> int:  # noqa: D102
        return 1

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        batches = list(client.batches)
        x_nd = torch.cat([projected(inputs, self.features, self.seed) for inputs, _ in batches])
        labels_n = torch.cat([classes_of(targets) for _, targets in batches])
        values = [information(x_n, labels_n, self.bins) for x_n in x_nd.T.contiguous()]
        return x_nd.new_tensor([sum(values) / len(values)])


class FeatureInformation(DataValue):
    r"""The mutual information of single features and labels of a client's samples, in nats, mean over d features.

    .. math:: v_k = \frac{1}{d} \sum_{f=1}^{d} H(b(x_f)) + H(y) - H(b(x_f), y)

    Features are a random projection of the inputs (:func:`~hetfl.value.features.projected`), and b puts the values of a
    feature into bins of equally many of the client's samples. Entropies have the correction for their bias
    (:func:`entropy`); with few samples per pair of bin and label it is incomplete, and the value too large. Random
    labels have a value of about 0; so has a client with one class.

    Needs one class per sample, inputs of floating-point numbers, and clients that answer questions. Leaks 1 number per
    client, once. Costs one pass over the inputs without the net.

    Args:
        features: d.
        bins: of each feature, at least 2.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(self, features: int = 16, bins: int = 5) -> None:
        super().__init__()
        if features < 1 or bins < 2:
            raise ConfigurationError(f"Expected features of at least 1, bins of at least 2 but got {features}, {bins}")
        self.features, self.bins = features, bins

    def measured(self, clients: Sequence[int], probe: ClientProbe) -> dict[int, float]:  # noqa: D102
        return single(clients, Informative(self.features, self.seed, self.bins), probe)
