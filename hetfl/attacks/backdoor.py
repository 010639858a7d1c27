"""Hostile clients that teach the model a trigger."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.attacks.hostile import check_hostile, hostile_clients
from hetfl.data.client_transform import ClientTransform
from hetfl.errors import ConfigurationError


class Backdoor(ClientTransform):
    """Hostile clients put a white patch into some of their training images, and give these the label of a target.

    The patch is a square in the lower right corner. The samples are the first ones of a client. Test samples and
    those of ``val_fraction`` stay clean; those that a client holds out (``client_val_fraction``) do not.
    :meth:`patched` makes samples to measure the attack with. Gu, Dolan-Gavitt, Garg: BadNets (arXiv 1708.06733); in
    federated learning Bagdasaryan et al., AISTATS 2020.

    Args:
        target: the label of samples with the patch.
        poisoned: share of a hostile client's samples that get it, in (0, 1].
        size: pixels of a side of the patch.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    train_only = True

    def __init__(
        self,
        target: int = 0,
        poisoned: float = 0.5,
        size: int = 3,
        clients: Sequence[int] | None = None,
        share: float | None = None,
    ) -> None:
        check_hostile(type(self).__name__, clients, share)
        if target < 0 or not 0.0 < poisoned <= 1.0 or size < 1:
            raise ConfigurationError(
                "Expected target of at least 0, poisoned in (0, 1] and size of at least 1 for Backdoor but got "
                f"{target}, {poisoned}, {size}"
            )
        self.target, self.poisoned, self.size, self.clients, self.share = target, poisoned, size, clients, share

    def patched(self, inputs: Tensor, unit: float) -> Tensor:
        """Return images with the patch.

        Args:
            inputs: raw images, shape (n, C, height, width).
            unit: the value of white.

        Raises:
            ConfigurationError: the inputs are no images, or smaller than the patch.
        """
        if inputs.dim() != 4 or min(inputs.shape[2:]) < self.size:
            raise ConfigurationError(
                f"Expected images (n, C, height, width) of at least {self.size} pixels for Backdoor but got inputs of "
                f"shape {tuple(inputs.shape)}"
            )
        changed = inputs.clone()
        changed[..., -self.size :, -self.size :] = unit
        return changed

    def apply(  # noqa: D102
        self, inputs: Tensor, client: int, num_clients: int, unit: float, generator: torch.Generator
    ) -> Tensor:
        count = self._count(len(inputs), client, num_clients)
        return torch.cat([self.patched(inputs[:count], unit), inputs[count:]]) if count else inputs

    def relabel(  # noqa: D102
        self, targets: Tensor, client: int, num_clients: int, num_classes: int, generator: torch.Generator
    ) -> Tensor:
        if self.target >= num_classes:
            raise ConfigurationError(f"Expected target below {num_classes} for Backdoor but got {self.target}")
        changed = targets.clone()
        changed[: self._count(len(targets), client, num_clients)] = self.target
        return changed

    def _count(self, samples: int, client: int, num_clients: int) -> int:
        hostile = client in hostile_clients(self.clients, self.share, num_clients)
        return math.ceil(round(self.poisoned * samples, 9)) if hostile else 0

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        return "backdoor" if self._count(1, client, num_clients) else "clean"
