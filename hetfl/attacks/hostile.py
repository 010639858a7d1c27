"""Which clients are hostile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


def check_hostile(name: str, clients: Sequence[int] | None, share: float | None) -> None:
    """Check the two ways of naming hostile clients.

    Args:
        name: of the attack, for messages.
        clients: their ids.
        share: their share of all clients.

    Raises:
        ConfigurationError: not exactly one of both is given, an id is negative, or the share is not in [0, 1].
    """
    if (clients is None) == (share is None):
        raise ConfigurationError(
            f"Expected clients or share for {name} but got {'neither' if clients is None else 'both'}"
        )
    if clients is not None and min(clients, default=0) < 0:
        raise ConfigurationError(f"Expected ids of at least 0 as clients for {name} but got {list(clients)}")
    if share is not None and not 0.0 <= share <= 1.0:
        raise ConfigurationError(f"Expected share in [0, 1] for {name} but got {share}")


def hostile_clients(clients: Sequence[int] | None, share: float | None, num_clients: int) -> frozenset[int]:
    """Return the ids of the hostile clients, the same for all attacks and seeds.

    Args:
        clients: their ids; None: they are drawn.
        share: their share of all clients, rounded to whole clients.
        num_clients: number N of all clients.

    Raises:
        ConfigurationError: a client is not below N.
    """
    if clients is not None:
        if max(clients, default=0) >= num_clients:
            raise ConfigurationError(f"Expected hostile clients below {num_clients} but got {max(clients)}")
        return frozenset(clients)
    return _drawn(round((share or 0.0) * num_clients), num_clients)


@lru_cache(maxsize=8)
def _drawn(count: int, num_clients: int) -> frozenset[int]:
    order = torch.randperm(num_clients, generator=generator(0, "hostile clients", num_clients))
    return frozenset(order[:count].tolist())
