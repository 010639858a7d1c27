"""Adapters as files of ``peft``, which that package loads onto the same base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.factors import A, B
from hetfl.files import write_whole
from hetfl.lora.adapters import adapted_layers, is_transposed, scale_at
from hetfl.lora.net import LoRA
from hetfl.lora.transformers_net import TransformersNet
from hetfl.models.attention import Projection

PREFIX = "base_model.model."
"""Stands before names of the base in files of peft."""
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""The two files of an adapter."""


def save_adapter(net: LoRA, folder: str | Path) -> None:
    """Write the adapters of a net, of any rank, and its other trained tensors, as an adapter of ``peft``.

    The folder gets ``adapter_config.json`` and ``adapter_model.safetensors``. ``peft.PeftModel.from_pretrained(base,
    folder)`` then has the outputs of the net: peft's factor is alpha / r, so alpha is s r here. For a model of
    ``transformers`` the base is that model; otherwise it is the base of the net.

    Args:
        net: the net of a level.
        folder: the folder; it is made if it does not exist.

    Raises:
        ConfigurationError: peft has no such layer: a projection of hetfl's attention, which has no layer of its own.
    """
    base = net.net.model if isinstance(net.net, TransformersNet) else net.net
    assert isinstance(base, nn.Module)
    layers = adapted_layers(base)
    for name, layer in layers.items():
        if isinstance(layer, Projection):
            raise ConfigurationError(
                f"Expected adapters of linear layers and convolutions for peft but got one of {name!r}, a projection "
                "of hetfl's attention: choose other targets, or export the merged net"
            )
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = getattr(layer, A).detach(), getattr(layer, B).detach()
        tensors[f"{PREFIX}{name}.{A}.weight"] = a
        tensors[f"{PREFIX}{name}.{B}.weight"] = b[..., None, None] if isinstance(layer, nn.Conv2d) else b
    factors = {f"{name}.{factor}" for name in layers for factor in (A, B)}
    whole = {n: p for n, p in base.named_parameters() if p.requires_grad and n not in factors}
    tensors |= {f"{PREFIX}{name}": parameter.detach() for name, parameter in whole.items()}
    modules = _modules(base, whole, layers)
    config = _config(net, list(layers), modules, any(map(is_transposed, layers.values())))
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    content = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_whole(path / TENSORS, safetensors.torch.save(content, {"format": "pt"}))
    write_whole(path / CONFIG, json.dumps(config, indent=2).encode() + b"\n")


def _modules(base: nn.Module, whole: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the layers that are trained whole.

    Raises:
        ConfigurationError: peft cannot load them: a layer is trained in part, or has adapters, too.
    """
    modules = sorted({name.rpartition(".")[0] for name in whole})
    for module in modules:
        parts = {f"{module}.{name}" for name, _ in base.get_submodule(module).named_parameters()}
        if module in layers or parts - whole.keys():
            raise ConfigurationError(
                f"Expected layers that are trained whole and have no adapters, for peft, but got {module!r}"
            )
    return modules


def _config(net: LoRA, layers: list[str], modules: list[str], transposed: bool) -> dict[str, Any]:
    scales = {scale_at(layer) for layer in adapted_layers(net).values()}
    assert len(scales) == 1
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": net.rank,
        "lora_alpha": net.scale * net.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "target_modules": layers,
        "modules_to_save": modules or None,
    }
