"""Feature skew by noise (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hetfl.data.client_transform import ClientTransform
from hetfl.errors import ConfigurationError


class FeatureNoise(ClientTransform):
    r"""Adds Gaussian noise to the inputs of client i; the noise grows with i, and client 0 has none.

    .. math:: \tilde x = x + \mathcal N(0, \sigma_i^2), \quad \sigma_i = \sigma \, i / (N - 1)

    The unit is white = 1, before normalisation. The noise is drawn once for each sample and is not clipped. The paper
    defines the level as a variance; its code uses it as the standard deviation, as here. Images become floats, four
    times as large in memory. A single client has no noise.

    Both this rule and :class:`hetfl.fleet.Fixed` go by the number of the client: with ``Fixed`` the clients with large
    models have the cleanest data.

    Args:
        sigma: the standard deviation of the noise of the last client.

    Raises:
        ConfigurationError: sigma is negative or not finite.
    """

    def __init__(self, sigma: float) -> None:
        if not (sigma >= 0 and math.isfinite(sigma)):
            raise ConfigurationError(f"Expected a finite sigma >= 0 (FeatureNoise) but got {sigma}")
        self.sigma = sigma

    def level(self, client: int, num_clients: int) -> float:
        """Return the standard deviation of the noise of a client."""
        return self.sigma * client / max(num_clients - 1, 1)

    def apply(  # noqa: D102
        self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator
    ) -> Tensor:
        clean = inputs.to(torch.get_default_dtype())
        level = self.level(client, num_clients)
        if level == 0:
            return clean
        noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
        return clean + level * unit * noise

    def amount(self, client: int, num_clients: int) -> float:  # noqa: D102
        return self.level(client, num_clients)

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        level = self.level(client, num_clients)
        return f"noise {level:.3g}" if level else "clean"
