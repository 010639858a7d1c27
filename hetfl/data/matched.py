"""A partition of the test set with the same class mix per client as the training set, for accuracies per client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.data.partition import class_counts, positions_by_owner


def matched_partition(
    train_labels: Tensor, parts: Sequence[Tensor], test_labels: Tensor, generator: torch.Generator
) -> list[Tensor]:
    r"""Return per client the positions of its test samples, in proportion to its training samples of each class.

    Of the :math:`m_c` test samples of class c, client k gets :math:`m_c n_{kc} / \sum_i n_{ic}`, rounded by largest
    remainders, where :math:`n_{kc}` counts its training samples of the class. No test sample goes to two clients.
    Test samples of a class that no client trains on stay unassigned.

    Args:
        train_labels: int64, shape (n,).
        parts: per client the positions of its training samples.
        test_labels: int64, shape (m,).
        generator: breaks ties, and draws the samples of each client.
    """
    owners = torch.full_like(test_labels, -1)
    counts_NK = class_counts(train_labels, parts, 1 + int(torch.cat([train_labels, test_labels]).max()))
    for label in test_labels.unique().tolist():
        members = (test_labels == label).nonzero().flatten()
        if counts_NK[:, label].any():
            shares_N = largest_remainder(len(members), counts_NK[:, label], generator)
            shuffled = members[torch.randperm(len(members), generator=generator)]
            owners[shuffled] = torch.arange(len(parts)).repeat_interleave(shares_N)
    return positions_by_owner(owners, len(parts))


def largest_remainder(total: int, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return integers, shape (N,), that add up to ``total`` in proportion to integer weights (Hamilton's method).

    Equal remainders are ordered at random. Ordered by position, the first clients would get more of every class.

    >>> largest_remainder(10, torch.tensor([5, 3, 0, 4]), torch.Generator())
    tensor([4, 3, 0, 3])
    """
    scaled, whole = total * weights, weights.sum()
    shares, remainders = scaled // whole, scaled % whole
    shuffle = torch.randperm(len(weights), generator=generator)
    order = shuffle[remainders[shuffle].argsort(descending=True, stable=True)]
    shares[order[: total - int(shares.sum())]] += 1
    return shares
