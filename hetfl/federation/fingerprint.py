"""What may not change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import Tensor

from hetfl.compression import ErrorFeedback
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation.levels import LevelSet
from hetfl.local import Penalty


def fingerprint(
    *,
    method: str,
    levels: LevelSet,
    tensors: Mapping[str, Tensor],
    data: FederatedDataModule,
    uplink: ErrorFeedback,
    penalty: Penalty | None,
    server_optimizer: str,
    seed: int,
) -> dict[str, str]:
    """Return by name what the state in a checkpoint depends on, in short text that can be compared and shown.

    Numbers of rounds and learning rates are not in it: they may change.
    """
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return {
        "method": method,
        "net": f"{sum(t.numel() for t in tensors.values())} entries, {_digest(shapes.encode())}",
        "levels": ", ".join(f"{n}: {level.width:g}x{level.depth or 'all'}" for n, level in levels.items()),
        "partition": f"{data.num_clients} clients of {sum(data.sizes)} samples, {_partition(data)}",
        "compressor": uplink.compressor.describe(),
        "residual store": type(uplink.residuals).__name__,
        "local penalty": "none" if penalty is None else penalty.describe(),
        "server optimizer": server_optimizer,
        "seed": str(seed),
    }


def compare(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Refuse to go on from another federation's checkpoint.

    Raises:
        ConfigurationError: something differs; names it, with both values.
    """
    for name, value in present.items():
        if saved.get(name) != value:
            raise ConfigurationError(
                f"Expected the checkpoint's {name} ({saved.get(name, 'not in it')}) but got {value}: a run goes on "
                f"with the {name} that it began with"
            )


def _partition(data: FederatedDataModule) -> str:
    content = hashlib.blake2b(digest_size=6)
    for client in range(data.num_clients):
        content.update(data.client_data(client).targets.numpy().tobytes())
    return content.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
