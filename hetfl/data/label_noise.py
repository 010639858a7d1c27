"""Clients whose training labels are partly random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hetfl.data.client_transform import ClientTransform
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator as named_generator


class LabelNoise(ClientTransform):
    r"""Replaces a share of each client's training labels by labels drawn uniformly from all K classes.

    Of n labels of client i, :math:`\mathrm{round}(s_i n)` are replaced, so a share :math:`s_i (K - 1) / K` is wrong on
    average. The samples are drawn at random, once. The samples of ``val_fraction``, test samples and the server's
    samples keep their labels: accuracies are those on true labels. Those that a client holds out
    (``client_val_fraction``) have changed labels. A method with rules about a client's labels sees the replaced ones.

    Args:
        shares: s; client i has the entry ``i mod len(shares)``.
        between: bounds, from which each client's share is drawn uniformly, in place of ``shares``. The shares depend
            only on the number of clients, not on the seed.

    Raises:
        ConfigurationError: not exactly one of both is given, or a share is not in [0, 1].
    """

    def __init__(self, shares: Sequence[float] | None = None, between: tuple[float, float] | None = None) -> None:
        if (shares is None) == (between is None):
            raise ConfigurationError(
                f"Expected shares or between for LabelNoise but got {'neither' if shares is None else 'both'}"
            )
        given = list(shares or between or ())
        if not given or not all(0 <= share <= 1 for share in given) or (between and between[0] > between[1]):
            raise ConfigurationError(f"Expected shares in [0, 1], and rising bounds, for LabelNoise but got {given}")
        self.shares, self.between = shares, between

    def share(self, client: int, num_clients: int) -> float:
        """Return the share of a client's labels that are replaced."""
        if self.shares is not None:
            return float(self.shares[client % len(self.shares)])
        assert self.between is not None
        low, high = self.between
        return low + (high - low) * _uniform(num_clients)[client]

    def relabel(  # noqa: D102
        self, targets: Tensor, client: int, num_clients: int, num_classes: int, generator: torch.Generator
    ) -> Tensor:
        replaced = math.floor(self.share(client, num_clients) * len(targets) + 0.5)
        places = torch.randperm(len(targets), generator=generator)[:replaced]
        noisy = targets.clone()
        noisy[places] = torch.randint(num_classes, (replaced,), generator=generator, dtype=targets.dtype)
        return noisy

    def amount(self, client: int, num_clients: int) -> float:  # noqa: D102
        return self.share(client, num_clients)

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        share = self.share(client, num_clients)
        return f"{100 * share:.3g} % random labels" if share else "clean"


@lru_cache(maxsize=8)
def _uniform(num_clients: int) -> tuple[float, ...]:
    """Return a number in [0, 1) for each client."""
    random = named_generator(0, "label noise", num_clients)
    return tuple(torch.rand(num_clients, dtype=torch.float64, generator=random).tolist())
