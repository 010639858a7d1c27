"""The fingerprint: settings that must be equal in a checkpoint and in the run that resumes from it."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.local import LocalTraining
from hetfl.piece import Piece, described, settings_of
from hetfl.submodel import parameters_of
from hetfl.tree import leaves
from hetfl.types import Level

LEARNING_RATES = ("lr", "max_lr", "min_lr", "initial_lr", "base_lr")
"""Names of learning rates in optimizers; these may change."""
LATER = ("sizes of clients", "transform", "precision", "layers")
"""Entries that checkpoints of earlier versions lack; they are compared only where a checkpoint has them."""
WHOLE = re.compile(r"(?<=\d)\.0(?![\d.])")
"""The decimals of a whole number."""
OF_SCHEDULES = ("last_epoch", "base_lrs", "verbose")
"""Attributes of schedules that are progress or learning rates; these may change."""


def fingerprint(
    net: nn.Module,
    local: LocalTraining,
    server: Callable[[Iterable[Tensor]], Optimizer],
    data: FederatedDataModule,
    pieces: Mapping[str, Piece],
) -> dict[str, str]:
    """Return the settings on which the state in a checkpoint depends, as short texts by name.

    The number of rounds and learning rates may change, and are not included.

    Args:
        net: a global model.
        local: the settings of local training.
        server: makes the server optimizer.
        data: the data module of a trainer, after setup.
        pieces: the stateful pieces, by name.
    """
    clients = local.optimizer([nn.Parameter(torch.zeros(1))])
    return {
        "partition": _partition(data),
        "sizes of clients": _sizes(data.sizes),
        "transform": described(type(data.transform).__name__, settings_of(data.transform)),
        "precision": str(getattr(data.trainer, "precision", None)),
        "layers": _layers(net),
        "local training": local.describe(),
        "client optimizer": optimizer_settings(clients),
        "client schedule": "none" if local.scheduler is None else _schedule_settings(local.scheduler(clients)),
        "server optimizer": optimizer_settings(server(parameters_of(net).values())),
        **{name: text for name, piece in pieces.items() if (text := piece.describe())},
    }


def of_models(tensors: Mapping[str, Tensor], levels: Mapping[str, Level]) -> dict[str, str]:
    """Return the part of the fingerprint that describes the models and does not depend on the data.

    Args:
        tensors: the tensors of a global model, by name.
        levels: the levels, by name.
    """
    sizes = {n: f"{level.width:g}x{level.depth or 'all'}" for n, level in levels.items()}
    densities = {n: "" if level.density == 1 else f" at density {level.density:g}" for n, level in levels.items()}
    ranks = {n: "" if level.rank is None else f" of rank {level.rank}" for n, level in levels.items()}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return {
        "net": f"{sum(t.numel() for t in tensors.values())} entries, {_digest(shapes.encode())}",
        "levels": ", ".join(f"{name}: {size}{densities[name]}{ranks[name]}" for name, size in sizes.items()),
    }


def agree(saved: Mapping[str, str], present: Mapping[str, str]) -> None:
    """Refuse to resume from the checkpoint of a different federation.

    Raises:
        ConfigurationError: a setting differs; the message has its name and both values.
    """
    for name, value in present.items():
        if name in LATER and name not in saved:
            continue
        if _as_number(saved.get(name, "")) != _as_number(value):
            raise ConfigurationError(
                f"Expected the checkpoint's {name} ({saved.get(name, 'not in it')}) but got {value}: a resumed run "
                f"needs the {name} of its first round"
            )


def _as_number(text: str) -> str:
    """Return a text in which whole numbers have no decimals: a configuration has 0.0 where Python's default is 0."""
    return WHOLE.sub("", text)


def optimizer_settings(optimizer: Optimizer) -> str:
    """Return the class and the settings of an optimizer without learning rates."""
    settings = {name: value for name, value in optimizer.defaults.items() if name not in LEARNING_RATES}
    return described(type(optimizer).__name__, settings)


def _schedule_settings(schedule: object) -> str:
    """Return the class and the settings of a schedule, including those of nested schedules."""
    kept = {
        name: [_schedule_settings(each) for each in value] if name == "_schedulers" else value
        for name, value in vars(schedule).items()
        if name == "_schedulers" or not (name.startswith("_") or name in OF_SCHEDULES)
    }
    return described(type(schedule).__name__, kept)


def _partition(data: FederatedDataModule) -> str:
    content, inputs = hashlib.blake2b(digest_size=6), 0
    for client in range(data.num_clients):
        samples = data.client_data(client)
        content.update(samples.targets.numpy().tobytes())
        for leaf in leaves(samples.inputs):
            inputs = zlib.crc32(leaf.contiguous().numpy().data, inputs)
    return f"{data.num_clients} clients of {sum(data.sizes)} samples, {content.hexdigest()}-{inputs:08x}"


def _sizes(sizes: Sequence[int]) -> str:
    """Return what tells two partitions apart whose samples, one client after the other, are the same."""
    return f"{min(sizes)} to {max(sizes)} samples, {_digest(repr(tuple(sizes)).encode())}"


def _layers(net: nn.Module) -> str:
    names = [type(layer).__name__ for layer in net.modules()]
    return f"{len(names)} modules, {_digest(' '.join(names).encode())}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
