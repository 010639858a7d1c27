"""Channels that speak for a class: TF-IDF of their activations."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.pruning.channels.scores import ranking


def tf_idf(activations_KC: Tensor) -> Tensor:
    r"""Return how much each channel speaks for each class, float64, shape (K, C).

    A class is a document, a channel a word, and the activation of a channel its count. With :math:`A_{k,c}` the mean
    absolute activation of channel c on samples of class k it is

    .. math:: S_{k,c} = \frac{A_{k,c}}{\sum_{c'} A_{k,c'}} \cdot
       \log \frac{1 + K}{1 + |\{j: A_{j,c} \ge \frac{1}{K} \sum_i A_{i,c}\}|}

    A class without activations has scores of 0.

    Wang, Guo, Xie, Qi: Federated Unlearning via Class-Discriminative Pruning, WWW 2022 (arXiv 2110.11794), section 3.3.

    Args:
        activations_KC: A, shape (K, C), not negative.
    """
    activations_KC = activations_KC.double()
    total_K1 = activations_KC.sum(1, keepdim=True)
    frequency_KC = torch.where(total_K1 > 0, activations_KC / total_K1.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    speaking_C = (activations_KC >= activations_KC.mean(0)).sum(0)
    return frequency_KC * ((1.0 + len(activations_KC)) / (1.0 + speaking_C)).log()


def most_telling(scores_C: Tensor, share: float, first: int) -> Tensor:
    """Return the channels with the highest scores, ascending, int64: the share of all, rounded to a whole number.

    Channels with a score of 0 are not chosen. Of the first channels, which the narrowest net has, one always stays. Of
    equal scores the lower position is chosen first.

    Args:
        scores_C: score of each channel, shape (C,).
        share: of the channels, in (0, 1).
        first: number of the first channels of which one stays.

    >>> most_telling(torch.tensor([0.3, 0.9, 0.0, 0.5]), share=0.5, first=2)
    tensor([1, 3])
    >>> most_telling(torch.tensor([0.8, 0.9, 0.0, 0.5]), share=0.75, first=2)
    tensor([1, 3])
    """
    order = ranking(scores_C)
    stays = order[order < first][-1]
    chosen = [channel for channel in order.tolist() if channel != stays and scores_C[channel] > 0]
    return torch.tensor(sorted(chosen[: int(share * len(order) + 0.5)]), dtype=torch.int64)
