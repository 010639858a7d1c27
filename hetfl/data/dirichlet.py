"""Dirichlet label skew, per class over clients (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.data.redrawn import Redrawn, dirichlet, whole_shares


class Dirichlet(Redrawn):
    r"""Divides each class by proportions :math:`\pi \sim \mathrm{Dir}(\beta \mathbf 1)` over the clients.

    As in NIID-Bench and DepthFL, clients that have reached n/N samples get nothing of the following classes, and the
    whole partition is redrawn until the smallest client has ``min_samples``. Other papers mean something else by
    "Dirichlet": FedDyn draws per client over the classes.

    Args:
        beta: concentration; towards 0 a class goes to one client, towards infinity all clients get equal shares.
        min_samples: number of samples that the smallest client must have.
        max_tries: maximum number of draws.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, ascending.

        Raises:
            ConfigurationError: no partition among ``max_tries`` has ``min_samples`` at every client.
        """
        members = [np.flatnonzero(labels.numpy() == c) for c in labels.unique().tolist()]

        def draw(rng: np.random.Generator) -> NDArray[np.int64]:
            return _draw(members, len(labels), num_clients, self.beta, rng)

        return self.redraw(draw, len(labels), num_clients, generator)


def _draw(
    members: list[NDArray[np.int64]], num_samples: int, num_clients: int, beta: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the owner of each sample, given the positions of each class."""
    owners = np.empty(num_samples, dtype=np.int64)
    sizes = np.zeros(num_clients, dtype=np.int64)
    for positions in members:
        # NIID-Bench draws over all clients, sets full clients to zero and renormalises. That is 0/0 if the open clients
        # drew 0. A subset of a Dirichlet vector, renormalised, is again a Dirichlet vector, so drawing over the open
        # clients has the same distribution and cannot fail. While samples are left, a client is below the mean.
        open_clients = np.flatnonzero(sizes * num_clients < num_samples)
        counts = whole_shares(dirichlet(beta, len(open_clients), rng), len(positions))
        owners[rng.permutation(positions)] = np.repeat(open_clients, counts)
        sizes[open_clients] += counts
    return owners
