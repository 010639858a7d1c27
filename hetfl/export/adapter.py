"""Plain nets for export, from nets with adapters or twins, and adapters as files of ``peft``."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Constructor
from hetfl.export.constructor import construct
from hetfl.export.tensors import copied, fill
from hetfl.federation import FederatedModule
from hetfl.lora import LoRA, merge
from hetfl.lora.peft_files import save_adapter
from hetfl.models import Twin

ROUNDING = 1e-4
"""Largest difference between the outputs of a merged net and of the net with adapters, relative to the largest."""


def plain(net: nn.Module) -> nn.Module:
    """Return the net that a file has: adapters merged into their base, and of twins the one that clients share."""
    if isinstance(net, LoRA):
        return merge(net.net)
    return net.shared if isinstance(net, Twin) else net


def filled(module: FederatedModule, level: str, submodel: nn.Module) -> nn.Module:
    """Return a new net of a level on the CPU, in evaluation mode, with the values of a sub-model."""
    net = module.levels.build(level).to(next(submodel.parameters()).dtype)
    fill(net, copied(submodel))
    return net.eval()


def merged(module: FederatedModule, level: str, submodel: nn.Module) -> tuple[nn.Module, Constructor]:
    """Return a new net on the CPU with the values of a sub-model, and its constructor call."""
    net, constructor = construct(lambda: plain(module.levels.build(level)))
    net.to(next(submodel.parameters()).dtype)
    fill(net, copied(plain(filled(module, level, submodel))))
    return net.eval().requires_grad_(False), constructor


def known_cluster(module: FederatedModule, cluster: int | None) -> int:
    """Return the number of the cluster to export.

    Raises:
        ConfigurationError: there are several models and ``cluster`` is None, or the number is out of range.
    """
    count = len(module.models)
    if cluster is None and count == 1:
        return 0
    if cluster is None or not 0 <= cluster < count:
        raise ConfigurationError(f"Expected a cluster from 0 to {count - 1} to export but got {cluster}")
    return cluster


def warn_of_personal(module: FederatedModule, submodel: nn.Module, path: str | Path) -> None:
    """Warn if a sub-model has personal tensors, which each client keeps: those of the server are the initial ones."""
    if module.personal.names and not isinstance(submodel, Twin):  # the net that clients share has none
        names = ", ".join(module.personal.names)
        rank_zero_warn(f"Personal tensors ({names}) have their initial values in {path}: each client keeps its own")


def export_adapter(module: FederatedModule, level: str, folder: str | Path, cluster: int | None = None) -> int:
    """Write the adapters of a level as an adapter of ``peft``; see :func:`hetfl.lora.peft_files.save_adapter`.

    Args:
        module: the federated module, after ``trainer.fit``, ``validate`` or ``test``.
        level: name of the level, whose rank the adapter has.
        folder: the folder, which must not be a file.
        cluster: number of the global model, if there are several.

    Returns:
        The number of trained entries in the adapter.

    Raises:
        ConfigurationError: the level or the cluster is unknown, its net has no adapters, or peft has no such layer.
    """
    if level not in module.levels:
        raise ConfigurationError(f"Expected a level in {list(module.levels)} but got {level!r}")
    cluster = known_cluster(module, cluster)
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices=[]):
        net = filled(module, level, module.submodel(level, cluster))
        if not isinstance(net, LoRA):
            raise ConfigurationError(f"Expected a net of hetfl.lora.LoRA for peft but got {type(net).__name__}")
        warn_of_personal(module, net, folder)
        save_adapter(net, folder)
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
