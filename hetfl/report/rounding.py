"""The decimals of scores that the number of samples supports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from hetfl.analysis import Run
from hetfl.runs.headline import Headline


@dataclass(frozen=True)
class RoundedHeadline(Headline):
    """A headline whose percentages are written with a fixed number of decimals.

    Attributes:
        digits: decimals of a percentage.
    """

    digits: int = 2

    def number(self, value: float, digits: int | None = None) -> str:
        """Return a score as text without its unit."""
        return super().number(value, self._digits(digits))

    def shown(self, value: float, digits: int | None = None) -> str:
        """Return a score as text with its unit."""
        return super().shown(value, self._digits(digits))

    def _digits(self, digits: int | None) -> int:
        if not self.percent:
            return 2
        return self.digits if digits is None else digits


def rounded(headline: Headline, runs: Iterable[Run]) -> RoundedHeadline:
    """Return the headline with the decimals that the smallest evaluation of some runs supports; 2 if it is unknown."""
    counts = [count for run in runs for count in (run.about.val_samples, run.about.test_samples) if count]
    return RoundedHeadline(**asdict(headline), digits=decimals(min(counts)) if counts else 2)


def decimals(samples: int) -> int:
    """Return the decimals of a percentage of samples, at most 2; a tenth of a percent needs 100 samples.

    >>> [decimals(samples) for samples in (50, 144, 1000, 10_000, 60_000)]
    [0, 1, 1, 2, 2]
    """
    return 2 if samples >= 10_000 else 1 if samples >= 100 else 0
