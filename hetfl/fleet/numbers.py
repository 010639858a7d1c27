"""Ranges of the numbers of a device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hetfl.errors import ConfigurationError
from hetfl.seeding import generator

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FOREVER = 2**62
"""The last round of a client that never leaves."""

_Rule = tuple[str, Callable[[FloatArray], BoolArray]]
_POSITIVE: _Rule = ("a finite number above 0", lambda x: (x > 0) & (x < np.inf))
_ROUND: _Rule = ("a whole number of at least 0", lambda x: (x >= 0) & (x <= FOREVER) & (x == np.floor(x)))
RULES: dict[str, _Rule] = {
    "throughput": _POSITIVE,
    "downlink": _POSITIVE,
    "uplink": _POSITIVE,
    "availability": ("a share from 0.001 to 1", lambda x: (x >= 0.001) & (x <= 1)),
    "failure_rate": ("a probability from 0 to 1", lambda x: (x >= 0) & (x <= 1)),
    "first_round": _ROUND,
    "last_round": _ROUND,
}
"""Ranges of the numbers of a device by name: as text, and as a test of an array."""


def check_column(name: str, values_N: FloatArray, where: Callable[[int], str]) -> None:
    """Refuse numbers that are out of their range.

    Args:
        name: of the number: a key of :data:`RULES`.
        values_N: one per client, shape (N,).
        where: returns text that names the place of the number at a position.

    Raises:
        ConfigurationError: names the first such number.
    """
    wanted, right = RULES[name]
    wrong = np.flatnonzero(~right(values_N))
    if len(wrong):
        raise ConfigurationError(
            f"Expected {name} {where(int(wrong[0]))} to be {wanted} but got {values_N[wrong[0]]:g}"
        )


def uniform(count: int, seed: int, *names: str | int) -> FloatArray:
    """Return random numbers in (0, 1), shape (count,), from the generator of the seed and names."""
    drawn: FloatArray = torch.rand(count, dtype=torch.float64, generator=generator(seed, *names)).numpy()
    return drawn + 2.0**-54  # half of torch's step, so that no number is 0 or 1
