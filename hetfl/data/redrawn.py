"""Partitions that are redrawn until the smallest client is large enough, at most a fixed number of times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.data.partition import Partitioner, positions_by_owner
from hetfl.errors import ConfigurationError

SMALLEST = 1e-300
"""Smallest beta in use. At this value one client gets all samples; far below, logarithms of Gamma variates overflow."""


class Redrawn(Partitioner):
    r"""A partitioner whose proportions are :math:`\mathrm{Dir}(\beta \mathbf 1)` vectors over the clients.

    NIID-Bench redraws without a limit until the smallest client has ten samples; here ``max_tries`` is the limit.

    Args:
        beta: concentration; towards 0 one client gets all samples, towards infinity all get equally many.
        min_samples: number of samples that the smallest client must have.
        max_tries: maximum number of draws.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(self, beta: float, min_samples: int = 10, max_tries: int = 100) -> None:
        name = type(self).__name__
        if not (beta > 0 and np.isfinite(beta)):
            raise ConfigurationError(f"Expected a positive, finite beta ({name}) but got {beta}")
        if min_samples < 0 or max_tries < 1:
            raise ConfigurationError(
                f"Expected min_samples >= 0 and max_tries >= 1 ({name}) but got {min_samples} and {max_tries}"
            )
        self.beta, self.min_samples, self.max_tries = beta, min_samples, max_tries

    def redraw(
        self,
        draw: Callable[[np.random.Generator], NDArray[np.int64]],
        num_samples: int,
        num_clients: int,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Return per client the positions of its samples, ascending.

        Args:
            draw: returns the owner of each sample.
            num_samples: number of samples n.
            num_clients: number of clients N.
            generator: source of every random choice.

        Raises:
            ConfigurationError: no partition among ``max_tries`` has ``min_samples`` at every client.
        """
        # NumPy draws Gamma variates from a given generator; torch has no public function for it.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        smallest = -1
        possible = num_clients * self.min_samples <= num_samples
        for _ in range(self.max_tries if possible else 0):
            owners = draw(rng)
            size = int(np.bincount(owners, minlength=num_clients).min())
            if size >= self.min_samples:
                return positions_by_owner(torch.from_numpy(owners), num_clients)
            smallest = max(smallest, size)
        tried = f"the best of {self.max_tries} draws gave {smallest}" if possible else "there are too few samples"
        raise ConfigurationError(
            f"Expected {self.min_samples} samples at the smallest client ({type(self).__name__} min_samples) but "
            f"{tried}, with beta={self.beta}, num_clients={num_clients}, {num_samples} samples: lower min_samples or "
            "num_clients, or raise beta or max_tries"
        )


def dirichlet(beta: float, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    r"""Return :math:`\pi \sim \mathrm{Dir}(\beta \mathbf 1)`, shape (size,), finite for any positive beta.

    The usual quotient of Gamma(β) variates is 0/0 for small β, because all variates underflow. Their logarithms do not
    underflow: Gamma(β) = Gamma(β+1) U^{1/β} (Marsaglia, Tsang, 2000).
    """
    beta = max(beta, SMALLEST)
    logs = np.log(rng.standard_gamma(beta + 1, size)) + np.log1p(-rng.random(size)) / beta
    weights = np.exp(logs - logs.max())
    proportions: NDArray[np.float64] = weights / weights.sum()
    return proportions


def whole_shares(proportions: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return integers that add up to ``total``, for proportions that add up to 1.

    They are the differences of the cumulative proportions times ``total``, rounded down.

    >>> whole_shares(np.array([0.5, 0.3, 0.2]), 7).tolist()
    [3, 2, 2]
    """
    ends = (np.cumsum(proportions) * total).astype(np.int64)
    return np.diff(np.append(ends[:-1], total), prepend=0)
