"""Mean and spread of numbers over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from hetfl.runs.headline import ACCURACY, Headline

FEW = 5
"""With fewer seeds the spread is the range of values; with this many or more, mean ± one standard deviation."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its spread.

    Attributes:
        mean: the mean.
        low: the lower end of the spread.
        high: the upper end of the spread.
        n: number of seeds.
    """

    mean: float
    low: float
    high: float
    n: int

    def shown(self, headline: Headline = ACCURACY) -> str:
        """Return a score with its spread as text.

        >>> Spread(0.5, 0.25, 0.75, 2).shown(), Spread(0.5, 0.5, 0.5, 1).shown(), Spread(0.5, 0.4, 0.6, 5).shown()
        ('50.00 % (25.00–75.00)', '50.00 %', '50.00 ± 10.00 %')
        """
        if self.n == 1:
            return headline.shown(self.mean)
        if self.n < FEW:
            return f"{headline.shown(self.mean)} ({headline.number(self.low)}–{headline.number(self.high)})"
        return f"{headline.number(self.mean)} ± {headline.shown(self.high - self.mean)}"

    def beats(self, other: Spread, headline: Headline = ACCURACY) -> bool:
        """Return whether this spread is entirely better than another spread; False if one of them has only one seed."""
        worse, better = (self, other) if headline.higher_is_better else (other, self)
        return self.n > 1 and other.n > 1 and worse.low > better.high


def bands(values_SX: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean, lower end and upper end of the spread over S seeds, each of shape (X,)."""
    mean = values_SX.mean(0)
    if len(values_SX) < FEW:
        return mean, values_SX.min(0), values_SX.max(0)
    deviation = values_SX.std(0, ddof=1)
    return mean, mean - deviation, mean + deviation


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Return mean and spread of one number per seed; None if a seed has no number.

    >>> spread_of([0.5, 0.75])
    Spread(mean=0.625, low=0.5, high=0.75, n=2)
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    mean, low, high = bands(np.asarray(known, dtype=np.float64)[:, None])
    return Spread(float(mean[0]), float(low[0]), float(high[0]), len(known))


def leader_of(results: Mapping[str, Spread | None], headline: Headline = ACCURACY) -> str | None:
    """Return the group that is told apart from all others as better; None if there is none, or no other.

    >>> leader_of({"x": Spread(0.9, 0.88, 0.92, 2), "y": Spread(0.8, 0.79, 0.81, 2), "z": None})
    'x'
    """
    known = {name: spread for name, spread in results.items() if spread is not None}
    for name, spread in known.items():
        others = [other for other in known if other != name]
        if others and all(spread.beats(known[other], headline) for other in others):
            return name
    return None


def span(low: str, high: str) -> str:
    """Return two amounts as a range; a common unit is written once.

    >>> span("1.5 MB", "2.0 MB"), span("999 B", "1.0 kB"), span("3", "3")
    ('1.5–2.0 MB', '999 B–1.0 kB', '3')
    """
    number, _, unit = low.partition(" ")
    return low if low == high else f"{number if unit == high.partition(' ')[2] else low}–{high}"


def chance_apart(one: int, other: int) -> float:
    """Return the probability that the ranges of two groups of equal distribution do not overlap.

    It is 2 / C(n + m, n) for n and m seeds: all orders of the groups are equally likely, and in two of them one group
    is entirely above the other.

    Args:
        one: number of seeds n of one group.
        other: number of seeds m of the other group.

    >>> round(chance_apart(2, 2), 4), round(chance_apart(3, 3), 4)
    (0.3333, 0.1)
    """
    return 2 / comb(one + other, one)


def spread_text(counts: Sequence[int]) -> str:
    """Return a text on the meaning of the spread, for groups with these numbers of seeds."""
    several = sorted({count for count in counts if count > 1})
    if not several:
        return "Every group has one run, so the spread over seeds is unknown."
    parts = []
    if several[0] < FEW:
        parts.append(f"from the lowest to the highest seed (fewer than {FEW} seeds)")
    if several[-1] >= FEW:
        parts.append(f"plus and minus one standard deviation ({FEW} seeds or more)")
    alone = "; a group of one run has no spread" if min(counts) == 1 else ""
    return f"Numbers are means over seeds. The spread of a group is {', or '.join(parts)}{alone}."
