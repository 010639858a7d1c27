"""Dirichlet label skew, per class over clients (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.data.partition import Partitioner, positions_by_owner
from hetfl.errors import ConfigurationError


class Dirichlet(Partitioner):
    r"""Each class is shared out by proportions :math:`\pi \sim \mathrm{Dir}(\beta \mathbf 1)` over the clients.

    Clients that have reached n/N samples take no part in the classes that follow (the balance trick), and the whole
    partition is redrawn until the smallest client has ``min_samples``: as in NIID-Bench and DepthFL. Elsewhere
    "Dirichlet" means other things; FedDyn draws per client over the classes.

    Args:
        beta: concentration; towards 0 a class goes to one client, towards infinity to all alike.
        min_samples: smallest client that is accepted.
        max_tries: partitions that are drawn at most.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def __init__(self, beta: float, min_samples: int = 10, max_tries: int = 100) -> None:
        if not (beta > 0 and np.isfinite(beta)):
            raise ConfigurationError(f"Expected a positive, finite beta (Dirichlet) but got {beta}")
        if min_samples < 0 or max_tries < 1:
            raise ConfigurationError(
                f"Expected min_samples >= 0 and max_tries >= 1 (Dirichlet) but got {min_samples} and {max_tries}"
            )
        self.beta, self.min_samples, self.max_tries = beta, min_samples, max_tries

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, ascending.

        Raises:
            ConfigurationError: no partition among ``max_tries`` has ``min_samples`` at every client.
        """
        # numpy draws gamma variates from a generator that is passed in; torch has no public call that does.
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        members = [np.flatnonzero(labels.numpy() == c) for c in labels.unique().tolist()]
        smallest = -1
        possible = num_clients * self.min_samples <= len(labels)
        for _ in range(self.max_tries if possible else 0):
            owners = _draw(members, len(labels), num_clients, self.beta, rng)
            size = int(np.bincount(owners, minlength=num_clients).min())
            if size >= self.min_samples:
                return positions_by_owner(torch.from_numpy(owners), num_clients)
            smallest = max(smallest, size)
        tried = f"the best of {self.max_tries} draws gave {smallest}" if possible else "there are too few samples"
        raise ConfigurationError(
            f"Expected {self.min_samples} samples at the smallest client (Dirichlet min_samples) but {tried}, with "
            f"beta={self.beta}, num_clients={num_clients}, {len(labels)} samples: lower min_samples or num_clients, "
            "or raise beta or max_tries"
        )


def _draw(
    members: list[NDArray[np.int64]], num_samples: int, num_clients: int, beta: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the owner of each sample, given the positions of each class."""
    owners = np.empty(num_samples, dtype=np.int64)
    sizes = np.zeros(num_clients, dtype=np.int64)
    for positions in members:
        # NIID-Bench draws over all clients, zeroes those that are full and renormalises: 0/0 if the others drew 0. Some
        # entries of a Dirichlet vector, renormalised, are a Dirichlet vector: drawing over the others is the same, and
        # can't fail. There always are others: while samples are left to share out, somebody is below the mean.
        open_clients = np.flatnonzero(sizes * num_clients < num_samples)
        ends = np.cumsum(dirichlet(beta, len(open_clients), rng)) * len(positions)
        counts = np.diff(np.append(ends.astype(np.int64)[:-1], len(positions)), prepend=0)
        owners[rng.permutation(positions)] = np.repeat(open_clients, counts)
        sizes[open_clients] += counts
    return owners


def dirichlet(beta: float, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    r"""Return :math:`\pi \sim \mathrm{Dir}(\beta \mathbf 1)`, shape (size,), finite for any positive beta.

    The usual quotient of Gamma(β) variates is 0/0 for small β, where all of them underflow. Their logarithms don't:
    Gamma(β) = Gamma(β+1) U^{1/β} (Marsaglia, Tsang, 2000).
    """
    logs = np.log(rng.standard_gamma(beta + 1, size)) + np.log1p(-rng.random(size)) / beta
    weights = np.exp(logs - logs.max())
    proportions: NDArray[np.float64] = weights / weights.sum()
    return proportions
