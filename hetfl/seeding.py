"""Random generators as functions of the seed and names, independent of the order of calls.

Every random choice of a run has its own generator, made from the seed and from names: the purpose, the round, the
client. So the number of workers, the order in which clients finish, and a kill and resume cannot change a result, and a
checkpoint needs no generator state.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *names: str | int) -> int:
    """Return 63 bits of a digest of the seed and all names: the first 8 bytes of BLAKE2b(seed, names), shifted by one.

    >>> derive(0, "local", 3, 17) == derive(0, "local", 3, 17) != derive(0, "local", 17, 3)
    True
    """
    key = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's global generators of the CPU and of a device, from which dropout and initial values are drawn.

    ``torch.manual_seed`` also seeds the GPUs that a process does not use, and records the whole call stack to do so.

    Args:
        seed: the seed.
        device: where the random numbers are drawn; None: the CPU.
    """
    if device is None or device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, *names))
