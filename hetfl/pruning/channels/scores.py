"""Scores of channels: the scores of the entries that write a channel, or read it, added up over its group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.pruning.channels.groups import Group, Member


def channel_scores(
    group: Group, scores: Mapping[str, Tensor], fan_out: bool = False, mean: bool = False, of_norms: bool = False
) -> Tensor:
    r"""Return the score of every channel of a group, float64 on the CPU, shape (C,).

    With :math:`s_j` the score of entry j and :math:`W_{c,t}` the entries of tensor t in the filter of channel c it is

    .. math:: S_c = \sum_t \frac{1}{n_t} \sum_{j \in W_{c,t}} s_j

    over the tensors t of the group, with :math:`n_t = 1`, or with ``mean`` the number of entries :math:`|W_{c,t}|`.
    Biases and norm layers do not count.

    Args:
        group: the group.
        scores: scores of entries by name of a tensor; tensors without scores do not count.
        fan_out: whether the weights by which other layers read the channel count, too.
        mean: whether tensors count by their mean entry, so that a large filter does not outweigh a small one.
        of_norms: whether the scores are those of norm layers, whose vectors count in place of weights.

    Raises:
        ConfigurationError: no tensor of the group counts.
    """
    total, counted = torch.zeros(group.size, dtype=torch.float64), False
    for member in group.members:
        tensor = scores.get(member.tensor)
        if tensor is None or not _counts(member, tensor, fan_out, of_norms):
            continue
        others = [dim for dim in range(tensor.dim()) if dim != member.dim]
        of_positions = tensor.sum(dim=others, dtype=torch.float64) if others else tensor.double()
        entries = tensor.numel() // group.size if mean else 1
        total, counted = total + of_positions.view(group.size, member.block).sum(1).cpu() / entries, True
    if not counted:
        what = "scales of a norm layer" if of_norms else "weights"
        raise ConfigurationError(
            f"Expected {what} with scores in the group of channels of {group.members[0].tensor!r} but got none"
        )
    return total


def _counts(member: Member, tensor: Tensor, fan_out: bool, of_norms: bool) -> bool:
    """Return whether a member counts; of norm layers only vectors have scores."""
    return of_norms if tensor.dim() == 1 else fan_out or not member.reads


def ranking(scores: Tensor) -> Tensor:
    """Return positions by falling score, int64; of equal scores the lower position comes first.

    >>> ranking(torch.tensor([1.0, 3.0, 3.0]))
    tensor([1, 2, 0])
    """
    return scores.sort(descending=True, stable=True).indices
