"""Hostile clients that train on wrong labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hetfl.attacks.hostile import check_hostile, hostile_clients
from hetfl.data.client_transform import ClientTransform


class LabelFlip(ClientTransform):
    r"""Hostile clients have the label :math:`K - 1 - y` in place of y in all their training samples.

    The samples of ``val_fraction`` and test samples keep their labels; those that a client holds out
    (``client_val_fraction``) have changed ones. Fang, Cao, Jia, Gong: Local Model Poisoning Attacks to Byzantine-Robust
    Federated Learning, USENIX Security 2020 (arXiv 1911.11815).

    Args:
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: not exactly one of ``clients`` and ``share`` is given, or one is out of its range.
    """

    def __init__(self, clients: Sequence[int] | None = None, share: float | None = None) -> None:
        check_hostile(type(self).__name__, clients, share)
        self.clients, self.share = clients, share

    def relabel(  # noqa: D102
        self, targets: Tensor, client: int, num_clients: int, num_classes: int, generator: torch.Generator
    ) -> Tensor:
        hostile = client in hostile_clients(self.clients, self.share, num_clients)
        return num_classes - 1 - targets if hostile else targets

    def describe(self, client: int, num_clients: int) -> str:  # noqa: D102
        return "flipped labels" if client in hostile_clients(self.clients, self.share, num_clients) else "clean"
