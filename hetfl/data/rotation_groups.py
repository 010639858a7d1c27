"""Groups of clients, each with its own rotation of the images (IFCA, NeurIPS 2020, arXiv 2006.04088)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from hetfl.data.client_transform import ClientTransform
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator as named_generator


class RotationGroups(ClientTransform):
    """Clients in groups of equal size; the images of group g are rotated by its angle.

    Sattler et al. (arXiv 1910.01991) and most papers on clustering use this setting: groups differ in their inputs, not
    in their labels. The group of a client is random, but depends only on the number of clients, not on the seed. Groups
    by client number would coincide with levels (:class:`hetfl.fleet.Fixed`) or labels
    (:class:`~hetfl.data.PathologicalLabels`).

    Multiples of 90° only move pixels, and need square images. Other angles are interpolated bilinearly, with black
    outside the image.

    Args:
        angles: counter-clockwise, in degrees, one per group.

    Raises:
        ConfigurationError: the list of angles is empty, or an angle is not finite.
    """

    def __init__(self, angles: Sequence[float] = (0.0, 90.0, 180.0, 270.0)) -> None:
        if not angles or not all(math.isfinite(angle) for angle in angles):
            raise ConfigurationError(f"Expected finite angles, one per group (RotationGroups), but got {list(angles)}")
        self.angles = tuple(angles)

    def groups(self, num_clients: int) -> tuple[int, ...]:
        """Return the group of each client; the sizes of groups differ by at most one.

        Raises:
            ConfigurationError: there are fewer clients than groups.

        >>> RotationGroups([0, 90]).groups(6)
        (0, 1, 1, 0, 0, 1)
        """
        if num_clients < len(self.angles):
            raise ConfigurationError(
                f"Expected at least {len(self.angles)} clients, one per angle (RotationGroups), but got {num_clients}"
            )
        return _groups(num_clients, len(self.angles))

    def apply(  # noqa: D102
        self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator
    ) -> Tensor:
        if inputs.dim() != 4:
            raise ConfigurationError(
                f"Expected images (N, C, height, width) to rotate (RotationGroups) but got {tuple(inputs.shape)}"
            )
        return rotated(inputs, self._angle(client, num_clients))

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        return f"{self._angle(client, num_clients):g}°"

    def _angle(self, client: int, num_clients: int) -> float:
        return self.angles[self.groups(num_clients)[client]]


@lru_cache(maxsize=8)
def _groups(num_clients: int, num_groups: int) -> tuple[int, ...]:
    order = torch.randperm(num_clients, generator=named_generator(0, "rotation groups", num_clients))
    return tuple((order % num_groups).tolist())


def rotated(images: Tensor, angle: float) -> Tensor:
    """Return images (N, C, height, width) rotated counter-clockwise by an angle in degrees.

    Raises:
        ConfigurationError: the angle is an odd multiple of 90°, and the images are not square.
    """
    quarters, rest = divmod(angle % 360, 90)
    if rest:
        turned: Tensor = rotate(images, angle, interpolation=InterpolationMode.BILINEAR)
        return turned
    if quarters % 2 and images.shape[-1] != images.shape[-2]:
        raise ConfigurationError(
            f"Expected square images for a rotation by {angle:g}° (RotationGroups) but got {tuple(images.shape[-2:])}"
        )
    return torch.rot90(images, int(quarters), dims=(-2, -1))
