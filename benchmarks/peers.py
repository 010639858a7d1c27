"""Other packages that simulate federated learning, on the work of ``round.py``, where they are installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias

import torch
from bare import BareLoop
from torch import Tensor
from work import Setting, Work, bare_work


class Peer(Protocol):
    """A package that does local rounds."""

    def round(self, work: Sequence[Work]) -> Any:
        """Train clients from the same global model; return what the package makes of them."""
        ...

    def total(self, trained: Any) -> Tensor:
        """Return the flat sum of the deltas in what :meth:`round` returned."""
        ...

    def close(self) -> None:
        """Give back processes and threads."""
        ...


MakePeer: TypeAlias = Callable[[Setting, Sequence[Tensor]], Peer]
"""From the work and the global model's tensors at the level."""


def installed_peers(actors: int) -> dict[str, MakePeer]:
    """Return what makes each peer that is installed; say in a line which is not, and how to install it.

    Args:
        actors: number of Flower's processes.
    """
    found: dict[str, MakePeer] = {}
    if _has("pfl", "pfl", "pfl==0.6.0"):
        # Or it takes whatever accelerator there is.
        os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
        from peer_pfl import PflPeer

        found[f"pfl {version('pfl')}"] = PflPeer
    if _has("Flower's simulation", "ray", "flwr[simulation]==1.41.0"):
        # Ray would give way to every other process of the machine, this one included.
        os.environ |= {"RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
        from peer_flower import FlowerPeer

        found[f"Flower {version('flwr')}, {actors} actors"] = partial(FlowerPeer, actors)
    return found


def _has(what: str, module: str, requirement: str) -> bool:
    if find_spec(module) is not None:
        return True
    sys.stderr.write(f"{what} is not installed and is left out: pip install '{requirement}'\n")
    return False


def check_peer(setting: Setting, peer: Peer, bare: BareLoop) -> None:
    """Compare a peer's deltas in two rounds with the bare loop's, in float32: of every client alone, and their sums.

    Raises:
        RuntimeError: they differ by more than 1e-6 for each client.
    """
    for number in range(2):
        work = bare_work(setting, number)
        for part in (*([client] for client in work), work):
            deltas = [torch.cat([tensor.flatten() for tensor in delta]) for delta in bare.round(part)]
            expected_D = torch.stack(deltas).sum(0)
            difference = float((peer.total(peer.round(part)) - expected_D).abs().max())
            if not difference <= 1e-6 * len(part) or not bool(expected_D.any()):
                raise RuntimeError(
                    f"Expected {type(peer).__name__} to make the bare loop's deltas of {part} but got a difference of "
                    f"{difference}"
                )
