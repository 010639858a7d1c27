"""The test set, shared out by the rule that the training set was: for accuracies on the clients' own kind of data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.data.partition import class_counts, positions_by_owner


def matched_partition(
    train_labels: Tensor, parts: Sequence[Tensor], test_labels: Tensor, generator: torch.Generator
) -> list[Tensor]:
    r"""Return per client the positions of its test samples: as many of each class as its training samples ask for.

    Of the :math:`m_c` test samples of class c, client k gets :math:`m_c n_{kc} / \sum_i n_{ic}`, rounded by largest
    remainders, where :math:`n_{kc}` counts its training samples of the class. No test sample goes to two clients; those
    of a class that no client trains on stay unassigned. So a client's test classes are among its training classes.

    Args:
        train_labels: int64, shape (n,).
        parts: per client the positions of its training samples.
        test_labels: int64, shape (m,).
        generator: decides ties, and which sample goes where.
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
    """Return whole numbers, shape (N,), that add up to ``total`` in proportion to whole weights (Hamilton's method).

    Ties between equal remainders are broken at random: by position, the first clients would have more of every class.

    >>> largest_remainder(10, torch.tensor([5, 3, 0, 4]), torch.Generator())
    tensor([4, 3, 0, 3])
    """
    scaled, whole = total * weights, weights.sum()
    shares, remainders = scaled // whole, scaled % whole
    shuffle = torch.randperm(len(weights), generator=generator)
    order = shuffle[remainders[shuffle].argsort(descending=True, stable=True)]
    shares[order[: total - int(shares.sum())]] += 1
    return shares
