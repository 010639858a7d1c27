"""Which clients are hostile."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import lru_cache

import torch
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.arguments import real
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


def check_hostile(name: str, clients: Sequence[int] | None, share: float | None) -> None:
    """Check the two ways of naming hostile clients.

    Args:
        name: of the attack, for messages.
        clients: their ids.
        share: their share of all clients.

    Raises:
        ConfigurationError: not exactly one of both is given, an id is no whole number or is negative, or the share is
            not in [0, 1].
    """
    if (clients is None) == (share is None):
        raise ConfigurationError(
            f"Expected clients or share for {name} but got {'neither' if clients is None else 'both'}"
        )
    try:
        ids = [operator.index(client) for client in (() if clients is None else clients)]
    except TypeError:
        raise ConfigurationError(f"Expected a list of ids as clients for {name} but got {clients!r:.60}") from None
    if min(ids, default=0) < 0:
        raise ConfigurationError(f"Expected ids of at least 0 as clients for {name} but got {ids}")
    if share is not None and not 0.0 <= real("share", share) <= 1.0:
        raise ConfigurationError(f"Expected share in [0, 1] for {name} but got {share}")


def hostile_clients(clients: Sequence[int] | None, share: float | None, num_clients: int) -> frozenset[int]:
    """Return the ids of the hostile clients, the same for all attacks and seeds; warn if a share is of no client.

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
    return _drawn(share or 0.0, num_clients)


@lru_cache(maxsize=8)
def _drawn(share: float, num_clients: int) -> frozenset[int]:
    count = round(share * num_clients)
    if share and not count:
        rank_zero_warn(f"A share of {share:g} of {num_clients} clients is none: no client is hostile")
    order = torch.randperm(num_clients, generator=generator(0, "hostile clients", num_clients))
    return frozenset(order[:count].tolist())
