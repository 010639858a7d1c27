"""What may not change between a checkpoint and the run that goes on from it."""

from __future__ import annotations

import hashlib
import inspect
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.submodel import parameters_of

if TYPE_CHECKING:
    from hetfl.federation.module import FederatedModule

LEARNING_RATES = ("lr", "max_lr", "min_lr", "initial_lr", "base_lr")
"""What an optimizer calls its learning rates, which may change."""
OF_SCHEDULES = ("last_epoch", "base_lrs", "verbose")
"""What a schedule keeps that says how far it is, or is a learning rate."""


def fingerprint(module: FederatedModule) -> dict[str, str]:
    """Return by name what the state in a checkpoint depends on, in short text that can be compared and shown.

    Numbers of rounds and learning rates are not in it: they may change.

    Args:
        module: the module, set up with its data.
    """
    local, uplink = module.local, module.uplink
    optimizer, schedule = _client_side(module)
    error_feedback = "" if uplink.enabled else ", no error feedback"
    return {
        "seed": str(module.seed),
        "method": settings_of(module, less=_shared_parameters(module)),
        **of_models(module),
        "partition": _partition(module.data),
        "level assignment": settings_of(module.assignment),
        "fleet": module.fleet.describe(),
        "deadline": str(module.deadline),
        "selection": settings_of(module.selection),
        "clustering": settings_of(module.clustering, less={"clusters"}),  # the models come with the checkpoint
        "local training": settings_of(local, less={"optimizer", "scheduler", "penalty"}),
        "local penalty": "none" if local.penalty is None else local.penalty.describe(),
        "client optimizer": optimizer,
        "client schedule": schedule,
        "compressor": uplink.compressor.describe(),
        "uplink": f"{'float16' if uplink.half_precision else 'whole'} values{error_feedback}",
        "staleness": uplink.staleness.describe(),
        "residual store": type(uplink.residuals).__name__,
        "aggregator": settings_of(module.aggregator),
        "server optimizer": optimizer_settings(module.server_optimizer(parameters_of(module.net).values())),
    }


def of_models(module: FederatedModule) -> dict[str, str]:
    """Return the part of it that says what its models are, and depends on no data."""
    tensors = module.tensors
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return {
        "net": f"{sum(t.numel() for t in tensors.values())} entries, {_digest(shapes.encode())}",
        "levels": ", ".join(f"{n}: {level.width:g}x{level.depth or 'all'}" for n, level in module.levels.items()),
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


def settings_of(part: object, less: Iterable[str] = ()) -> str:
    """Return a part's class and those of its constructor's arguments that it keeps, under their names, as plain values.

    Args:
        part: an object.
        less: arguments to leave out.

    >>> from hetfl.selection import Uniform
    >>> settings_of(Uniform(4))
    'Uniform(clients_per_round=4)'
    """
    names = [name for name in inspect.signature(type(part)).parameters if name not in set(less)]
    missing = object()
    kept = {name: getattr(part, name, missing) for name in names}
    return _call(type(part).__name__, kept)


def optimizer_settings(optimizer: Optimizer) -> str:
    """Return an optimizer's class and settings without its learning rates."""
    settings = {name: value for name, value in optimizer.defaults.items() if name not in LEARNING_RATES}
    return _call(type(optimizer).__name__, settings)


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items() if _plain(value))})"


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return all(_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def _shared_parameters(module: FederatedModule) -> set[str]:
    """Return the arguments that every method has: they have entries of their own."""
    base = next(kind for kind in type(module).__mro__ if kind.__name__ == "FederatedModule")
    return set(inspect.signature(base).parameters)


def _client_side(module: FederatedModule) -> tuple[str, str]:
    """Return the settings of the clients' optimizer, and of the schedule of its learning rate."""
    optimizer = module.local.optimizer([nn.Parameter(torch.zeros(1))])
    described = optimizer_settings(optimizer)
    if module.local.scheduler is None:
        return described, "none"
    return described, _schedule_settings(module.local.scheduler(optimizer))


def _schedule_settings(schedule: object) -> str:
    """Return a schedule's class and settings, those of schedules inside it included."""
    kept = {
        name: [_schedule_settings(each) for each in value] if name == "_schedulers" else value
        for name, value in vars(schedule).items()
        if name == "_schedulers" or not (name.startswith("_") or name in OF_SCHEDULES)
    }
    return _call(type(schedule).__name__, kept)


def _partition(data: FederatedDataModule) -> str:
    content, inputs = hashlib.blake2b(digest_size=6), 0
    for client in range(data.num_clients):
        own = data.client_data(client)
        content.update(own.targets.numpy().tobytes())
        inputs = zlib.crc32(own.inputs.contiguous().numpy().data, inputs)
    return f"{data.num_clients} clients of {sum(data.sizes)} samples, {content.hexdigest()}-{inputs:08x}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()
