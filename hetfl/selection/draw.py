"""Functions with which policies draw and rank clients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch


def uniformly(clients: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    """Return at most ``count`` of the clients, without replacement, every ordered choice equally likely."""
    order = torch.randperm(len(clients), generator=generator)
    return [clients[i] for i in order[:count].tolist()]


def proportionally(clients: Sequence[int], sizes: Sequence[int], count: int, generator: torch.Generator) -> list[int]:
    r"""Return at most ``count`` of the clients, without replacement, in the order in which they were drawn.

    Each draw takes client k of the remaining clients R with probability :math:`n_k / \sum_{i \in R} n_i`.

    Args:
        clients: ids.
        sizes: number of samples n by client id.
        count: largest number of clients to draw.
        generator: of the round.
    """
    if not clients:
        return []
    weights = torch.tensor([sizes[client] for client in clients], dtype=torch.float64)
    drawn = torch.multinomial(weights, min(count, len(clients)), generator=generator)
    return [clients[i] for i in drawn.tolist()]


def highest(scores: Mapping[int, float], count: int) -> list[int]:
    """Return at most ``count`` client ids, the highest score first, ties by id; NaN (a diverged model) is highest.

    >>> highest({3: 1.0, 1: 1.0, 2: float("nan"), 0: 0.5}, 3)
    [2, 1, 3]
    """
    ranks = {client: math.inf if math.isnan(score) else score for client, score in scores.items()}
    return sorted(ranks, key=lambda client: (-ranks[client], client))[:count]
