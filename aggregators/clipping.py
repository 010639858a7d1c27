"""Factors that clip updates to the usual norm of their level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FEWEST = 3
"""Least number of updates for the usual norm of a level: of two, it is unknown which one is too long."""


@dataclass(frozen=True)
class Length:
    """The length of an update.

    Attributes:
        level: the name of its client's level.
        norm: its 2-norm.
        size: number of its entries.
    """

    level: str
    norm: float
    size: int

    @property
    def by_root(self) -> float:
        """The norm per square root of entries, which sub-models of different sizes have in common."""
        return self.norm / math.sqrt(max(1, self.size))


def clip_factors(lengths: Sequence[Length], factor: float = 1.0) -> list[float]:
    r"""Return for each update the factor that clips it to the usual norm of its level.

    .. math:: s_k = \min\Bigl(1, \frac{f \sqrt{d_k}\, m_\ell}{\lVert u_k \rVert_2}\Bigr), \qquad
        m_\ell = \operatorname{median}_{i \in \ell} \frac{\lVert u_i \rVert_2}{\sqrt{d_i}}

    with :math:`d_k` the entries of an update and f the factor. A level of fewer than three updates takes :math:`m` from
    the level of the nearest size that has three; if none has, from all updates.

    Args:
        lengths: of the updates.
        factor: f.
    """
    by_level: dict[str, list[Length]] = {}
    for length in lengths:
        by_level.setdefault(length.level, []).append(length)
    usual = {level: _usual(level, by_level) for level in by_level}
    bounds = [factor * usual[length.level] * math.sqrt(length.size) for length in lengths]
    return [bound / length.norm if length.norm > bound else 1.0 for length, bound in zip(lengths, bounds, strict=True)]


def _usual(level: str, by_level: Mapping[str, Sequence[Length]]) -> float:
    enough = [each for each in by_level.values() if len(each) >= FEWEST]
    size = median(max(1, length.size) for length in by_level[level])

    def distance(lengths: Sequence[Length]) -> float:
        return abs(math.log(median(max(1, length.size) for length in lengths) / size))

    every = [length for each in by_level.values() for length in each]
    nearest = by_level[level] if len(by_level[level]) >= FEWEST else min(enough, key=distance, default=every)
    return median(length.by_root for length in nearest)
