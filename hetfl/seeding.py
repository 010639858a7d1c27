"""Randomness as a function of names, never of order.

Every random choice of a run draws from a generator made from the seed and the names of what it is for: the round, the
client, the purpose. So the number of workers, the order in which clients finish, and whether the run was killed and
resumed cannot change a result, and a checkpoint needs no generator state.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """Return 63 bits that depend on the seed and every name: the head of BLAKE2b(seed, names).

    >>> derive(0, "local", 3, 17) == derive(0, "local", 3, 17) != derive(0, "local", 17, 3)
    True
    """
    key = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))
