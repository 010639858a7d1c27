"""Distributions of the numbers of devices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from hetfl.errors import ConfigurationError
from hetfl.fleet.numbers import FloatArray


class Draw(ABC):
    """A distribution over clients."""

    @abstractmethod
    def at(self, quantile_N: FloatArray) -> FloatArray:
        """Return quantiles of the distribution (its inverse cumulative distribution function).

        Args:
            quantile_N: probabilities in (0, 1), shape (N,).

        Returns:
            The quantiles, shape (N,).
        """


class Between(Draw):
    """Uniform between two values.

    Args:
        low: the smallest value.
        high: the largest value.

    Raises:
        ConfigurationError: the values are not finite and ascending.
    """

    def __init__(self, low: float, high: float) -> None:
        if not -math.inf < low <= high < math.inf:
            raise ConfigurationError(f"Expected low of at most high, both finite, but got low {low} and high {high}")
        self.low, self.high = low, high

    def at(self, quantile_N: FloatArray) -> FloatArray:  # noqa: D102
        return self.low + (self.high - self.low) * quantile_N


class LogUniform(Draw):
    """A value whose logarithm is uniform between those of two values.

    Args:
        low: the smallest value, above 0.
        high: the largest value.

    Raises:
        ConfigurationError: the values are not positive, finite and ascending.
    """

    def __init__(self, low: float, high: float) -> None:
        if not 0 < low <= high < math.inf:
            raise ConfigurationError(f"Expected low above 0 and at most high but got low {low} and high {high}")
        self.low, self.high = low, high

    def at(self, quantile_N: FloatArray) -> FloatArray:  # noqa: D102
        ratio: FloatArray = (self.high / self.low) ** quantile_N
        return self.low * ratio


class LogNormal(Draw):
    """A value whose logarithm is normal: 68 % lie within a factor ``spread`` of the median, 95 % within its square.

    Args:
        median: the median.
        spread: the factor of one standard deviation; 1: all values are the median.

    Raises:
        ConfigurationError: the median is not positive, or the spread is below 1.
    """

    def __init__(self, median: float, spread: float = 2.0) -> None:
        if not 0 < median < math.inf:
            raise ConfigurationError(f"Expected a median above 0 but got {median}")
        if not 1 <= spread < math.inf:
            raise ConfigurationError(f"Expected a spread, a factor, of at least 1 but got {spread}")
        self.median, self.spread = median, spread

    def at(self, quantile_N: FloatArray) -> FloatArray:  # noqa: D102
        normal: FloatArray = torch.special.ndtri(torch.from_numpy(quantile_N)).numpy()
        factors: FloatArray = self.spread**normal
        return self.median * factors
