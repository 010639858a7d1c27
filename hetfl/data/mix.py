"""The class mix of each client, and its distance from the mix of all clients together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

    from hetfl.data.module import FederatedDataModule


MOST_LABELS = 1000
"""Maximum number of labels for which a table of clients has one column per label."""


def class_mix(data: FederatedDataModule) -> Tensor:
    """Return how many training targets of each client have each label, int64, shape (N, K)."""
    objective, clients = data.objective, range(data.num_clients)
    return torch.stack([objective.label_counts(data.client_data(k).targets, data.num_classes) for k in clients])


def divergence(counts_NK: Tensor) -> Tensor:
    r"""Return the total variation distance of each client's class mix from the global mix, float64, shape (N,).

    .. math:: d_k = \frac12 \sum_c \left| \frac{n_{kc}}{n_k} - \frac{n_c}{n} \right|

    with :math:`n_{kc}` samples of class c at client k, :math:`n_k = \sum_c n_{kc}`, and :math:`n_c`, :math:`n` their
    sums over the clients. It is the fraction of its samples that a client would have to exchange to have the global
    mix. 0 means the global mix; a client with one of K equally frequent classes has 1 - 1/K.

    Args:
        counts_NK: int64, shape (N, K); no client is empty.

    >>> divergence(torch.tensor([[5, 0], [0, 5], [5, 5]])).tolist()
    [0.5, 0.5, 0.0]
    """
    counts_NK = counts_NK.double()
    mix_NK = counts_NK / counts_NK.sum(dim=1, keepdim=True)
    mix_K = counts_NK.sum(dim=0) / counts_NK.sum()
    return (mix_NK - mix_K).abs().sum(dim=1) / 2


def client_table(data: FederatedDataModule) -> pd.DataFrame:
    """Return one row per client: sizes, number of labels, divergence, change of its samples, samples per label.

    Columns: ``client``, ``id`` if the data has client ids, ``train_samples``, ``test_samples``; if targets have labels
    also ``labels`` and ``divergence`` (see :func:`divergence`); ``change`` under a client transform; and, for at most
    :data:`MOST_LABELS` labels, ``class_0`` to ``class_{K-1}`` with the number of training targets of each label.
    """
    # Imported here because importing pandas takes 0.1 s, and most data sets do not need it.
    import pandas as pd

    counts_NK, clients = class_mix(data), range(data.num_clients)
    table = pd.DataFrame(
        {
            "client": clients,
            "train_samples": data.sizes,
            "test_samples": [len(data.client_data(client, "test")) for client in clients],
        }
    )
    if data.objective.owns_labels:
        table["labels"], table["divergence"] = (counts_NK > 0).sum(dim=1).numpy(), divergence(counts_NK).numpy()
    if data.client_names is not None:
        table.insert(1, "id", data.client_names)
    if data.client_transform is not None:
        table["change"] = [data.client_transform.describe(*each) for each in data.resident.changed_as]
    if not data.objective.owns_labels or data.num_classes > MOST_LABELS:
        return table
    classes = pd.DataFrame(counts_NK.numpy(), columns=[f"class_{number}" for number in range(data.num_classes)])
    return pd.concat([table, classes], axis=1)


def evenly_spaced(total: int, most: int) -> list[int]:
    """Return the integers below ``total``, or ``most`` of them at even distances with the first and the last.

    >>> evenly_spaced(3, 5), evenly_spaced(1000, 4)
    ([0, 1, 2], [0, 333, 666, 999])
    """
    if total <= most:
        return list(range(total))
    return [number * (total - 1) // (most - 1) for number in range(most)]
