"""Other packages for simulation of federated learning, if they are installed, on the work of ``round.py``."""

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
    """A package that runs local rounds."""

    def round(self, work: Sequence[Work]) -> Any:
        """Train clients from the same global model; return the result of the package."""
        ...

    def total(self, trained: Any) -> Tensor:
        """Return the flat sum of the deltas in a result of :meth:`round`."""
        ...

    def close(self) -> None:
        """Stop processes and threads."""
        ...


MakePeer: TypeAlias = Callable[[Setting, Sequence[Tensor]], Peer]
"""Makes a peer from the work and the tensors of the global model at the level."""


def installed_peers(actors: int) -> dict[str, MakePeer]:
    """Return a function that makes the peer for each installed package; print a line for each missing package.

    Args:
        actors: number of processes of Flower.
    """
    peers: dict[str, MakePeer] = {}
    if _has("pfl", "pfl", "pfl==0.6.0"):
        # Otherwise pfl uses any accelerator.
        os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
        from peer_pfl import PflPeer

        peers[f"pfl {version('pfl')}"] = PflPeer
    if _has("Flower's simulation", "ray", "flwr[simulation]==1.41.0"):
        # By default Ray gives its workers a lower priority than all other processes, including this one.
        os.environ |= {"RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
        from peer_flower import FlowerPeer

        peers[f"Flower {version('flwr')}, {actors} actors"] = partial(FlowerPeer, actors)
    return peers


def _has(what: str, module: str, requirement: str) -> bool:
    if find_spec(module) is not None:
        return True
    sys.stderr.write(f"{what} is not installed and is left out: pip install '{requirement}'\n")
    return False


def check_peer(setting: Setting, peer: Peer, bare: BareLoop) -> None:
    """Compare the deltas of a peer in two rounds with those of the bare loop, in float32, per client and summed.

    Raises:
        RuntimeError: an entry differs by more than 1e-6 per client.
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
