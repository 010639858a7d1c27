"""Feature skew by noise (Li et al., "NIID-Bench", ICDE 2022, arXiv 2102.02079)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hetfl.data.client_transform import ClientTransform
from hetfl.errors import ConfigurationError


class FeatureNoise(ClientTransform):
    r"""Client i's inputs carry Gaussian noise that grows with its number; client 0 is clean.

    .. math:: \tilde x = x + \mathcal N(0, \sigma_i^2), \quad \sigma_i = \sigma \, i / (N - 1)

    In units in which white is 1, before normalisation, without clipping, drawn once for each sample. The paper writes
    the level as a variance; its code uses it as the standard deviation, as here. Images become floats, four times as
    large in memory. A single client is clean.

    The level goes by the client's number, and :class:`hetfl.fleet.Fixed` shares sizes of models out by number too:
    there, large models get the clean data.

    Args:
        sigma: the standard deviation of the last client's noise.

    Raises:
        ConfigurationError: sigma is negative or not finite.
    """

    def __init__(self, sigma: float) -> None:
        if not (sigma >= 0 and math.isfinite(sigma)):
            raise ConfigurationError(f"Expected a finite sigma >= 0 (FeatureNoise) but got {sigma}")
        self.sigma = sigma

    def level(self, client: int, num_clients: int) -> float:
        """Return the standard deviation of a client's noise."""
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

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        level = self.level(client, num_clients)
        return f"noise {level:.3g}" if level else "clean"
