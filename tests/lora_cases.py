"""Small federations of low-rank adapters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from hetfl import FedAvg, FederatedModule, Level
from hetfl.local import LocalTraining
from hetfl.lora import LoRA
from hetfl.models import ConvNet, Transformer
from hetfl.selection import Uniform
from tests.conftest import small_module

IMAGES = partial(ConvNet, hidden=(8, 16), norm="group")
TEXT = partial(Transformer, 20, channels=8, heads=2, feed_forward=12, layers=2, pooling="none")


def adapted(**changes: Any) -> Callable[..., nn.Module]:
    """Return the factory of a small net of images with adapters of rank 4."""
    settings = {"net": IMAGES, "targets": ["*conv"], "max_rank": 4, "alpha": 8.0, "trainable": ["classifier.*"]}
    return partial(LoRA, **{**settings, **changes})


def ranks(*each: int) -> dict[str, Level]:
    """Return levels a, b, ... of the given ranks."""
    return {name: Level(name, rank=rank) for name, rank in zip("abcdefgh", each, strict=False)}


def lora_module(kind: type[FederatedModule] = FedAvg, **changes: Any) -> Any:
    """Return a module over Digits whose clients have adapters of ranks 4, 2 and 1."""
    optimizer = partial(SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)
    local = LocalTraining(epochs=1, batch_size=20, gradient_clip=1.0, optimizer=optimizer)
    settings = {"net": adapted(), "levels": ranks(4, 2, 1), "local": local, "selection": Uniform(4)}
    return small_module(kind, **{**settings, **changes})


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return a net whose trained parameters are random, so that products are not 0."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=random))
    return net
