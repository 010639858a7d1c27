"""Quantity skew: same class mix, different sizes (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetfl.data.redrawn import Redrawn, dirichlet, whole_shares


class QuantitySkew(Redrawn):
    r"""Cuts the shuffled samples by proportions :math:`q \sim \mathrm{Dir}(\beta \mathbf 1)` over the clients.

    The proportions are redrawn until the smallest client has ``min_samples``.

    Args:
        beta: concentration; towards 0 one client has nearly all samples, towards infinity all have equally many.
        min_samples: number of samples that the smallest client must have.
        max_tries: maximum number of draws.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    by_class: ClassVar[bool] = False

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, ascending.

        Raises:
            ConfigurationError: no partition among ``max_tries`` has ``min_samples`` at every client.
        """

        def draw(rng: np.random.Generator) -> NDArray[np.int64]:
            counts = whole_shares(dirichlet(self.beta, num_clients, rng), len(labels))
            return rng.permutation(np.repeat(np.arange(num_clients), counts))

        return self.redraw(draw, len(labels), num_clients, generator)
