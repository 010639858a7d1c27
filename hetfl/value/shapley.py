"""Shapley values of players, from a function that values coalitions: exact, by permutations, and truncated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb

import numpy as np
import torch
from numpy.typing import NDArray

Coalition = frozenset[int]
"""Players by number, from 0."""

Worth = Callable[[Coalition], float]
"""Returns the worth of a coalition."""

FloatArray = NDArray[np.float64]


def remembered(worth: Worth) -> Worth:
    """Return a function that computes the worth of every coalition once."""
    known: dict[Coalition, float] = {}

    def of(coalition: Coalition) -> float:
        if coalition not in known:
            known[coalition] = worth(coalition)
        return known[coalition]

    return of


def exact(worth: Worth, players: int) -> FloatArray:
    r"""Return the Shapley values of n players, from all :math:`2^n` coalitions.

    .. math:: \varphi_i = \sum_{P \not\ni i} \frac{1}{n \binom{n - 1}{|P|}} (v(P \cup \{i\}) - v(P))

    >>> exact(lambda coalition: float(0 in coalition and bool(coalition & {1, 2})), 3).round(4).tolist()
    [0.6667, 0.1667, 0.1667]
    """
    worth, values = remembered(worth), np.zeros(players)
    for player in range(players):
        others = [each for each in range(players) if each != player]
        for size in range(players):
            for chosen in combinations(others, size):
                before = frozenset(chosen)
                share = 1.0 / (players * comb(players - 1, size))
                values[player] += share * (worth(before | {player}) - worth(before))
    return values


def marginals(worth: Worth, order: list[int], whole: float, within: float) -> FloatArray:
    """Return what each player adds when the players join in an order.

    Once the coalition's worth is closer to that of all players than ``within``, those who join later add nothing.

    Args:
        worth: of a coalition.
        order: all players.
        whole: worth of all players.
        within: the truncation; 0: none.
    """
    added, coalition, present = np.zeros(len(order)), frozenset[int](), worth(frozenset())
    for player in order:
        if within and abs(whole - present) < within:
            break
        coalition |= {player}
        following = worth(coalition)
        added[player], present = following - present, following
    return added


def truncated(
    worth: Worth,
    players: int,
    random: torch.Generator,
    *,
    within: float = 0.001,
    between: float = 0.0,
    permutations: int | None = None,
    converged: float = 0.05,
    window: int = 10,
    guided: bool = False,
) -> FloatArray:
    r"""Return Shapley values estimated from random permutations: the mean of what each player adds.

    Sampling ends after at least max(30, n) permutations if the mean relative change of the running means over the last
    ``window`` permutations is below ``converged``, or after ``permutations``.

    Ghorbani, Zou: Data Shapley, ICML 2019, algorithm 1 (truncated Monte-Carlo); with ``guided`` and ``between`` Liu,
    Chen, Yu, Liu, Cui: GTG-Shapley, ACM TIST 2022 (arXiv 2109.02053).

    Args:
        worth: of a coalition.
        players: number n of players.
        random: draws the permutations.
        within: truncation of a permutation; it changes the sum of the values by less than this.
        between: if all players together change the worth by at most this, all values are 0.
        permutations: the most permutations; None: 2 n max(30, n).
        converged: bound of the relative change.
        window: permutations over which it is measured.
        guided: whether every player in turn is the first of a permutation.
    """
    worth = remembered(worth)
    nothing, whole = worth(frozenset()), worth(frozenset(range(players)))
    if abs(whole - nothing) <= between:
        return np.zeros(players)
    fewest = max(30, players)
    most, total, means = permutations or 2 * players * fewest, np.zeros(players), list[FloatArray]()
    for number in range(most):
        order = torch.randperm(players, generator=random).tolist()
        if guided:
            first = number % players
            order = [first, *(player for player in order if player != first)]
        total += marginals(worth, order, whole, within)
        means.append(total / (number + 1))
        if number + 1 >= fewest and _change(means, window) < converged:
            break
    return means[-1]


def _change(means: list[FloatArray], window: int) -> float:
    """Return the mean relative change of the running means over the last permutations."""
    last = means[-1]
    sizes = np.maximum(np.abs(last), 1e-12)
    return float(np.mean([np.abs(last - earlier) / sizes for earlier in means[-window - 1 : -1]]))
