"""safetensors: the net's own tensors and its static batch-norm statistics, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card
from hetfl.export.constructor import make
from hetfl.export.formats import Format, Predict
from hetfl.models.static_batch_norm import static_layers
from hetfl.tree import Tree
from hetfl.types import NetFactory


class Safetensors(Format):
    """A whole net: it is built by its constructor and can be trained further; it returns what the net returns."""

    name: ClassVar[str] = "safetensors"
    tolerance: ClassVar[float] = 0.0
    builds: ClassVar[bool] = True

    def encode(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> bytes:  # noqa: D102
        return safetensors.torch.save(copied(net), {"format": "pt"})

    def decode(self, data: bytes, card: Card, net: NetFactory | None) -> nn.Module:  # noqa: D102
        try:
            tensors = safetensors.torch.load(data)
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise ConfigurationError(f"Expected a safetensors file but got: {error}") from None
        if net is None:
            with torch.device("meta"):  # sizes out of a file are compared before any memory is taken for them
                check_tensors(tensors_of(make(card, None)), tensors)
        built = make(card, net)
        fill(built, tensors)
        return built.eval()

    def outputs(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> Tensor:
        """Return what the net returns, predictions or not."""
        outputs: Tensor = net(inputs_N)
        return outputs


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Return everything that a net has learnt, by name, sharing its memory: its state, and static batch norm's.

    Static batch norm's statistics are no part of ``state_dict``, since clients neither send nor average them.

    Raises:
        ConfigurationError: the net's state holds something else than tensors.
    """
    tensors = dict(net.state_dict())
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ConfigurationError(f"Expected tensors in the net's state but got {type(value).__name__} in {name!r}")
    for name, layer in static_layers(net).items():
        prefix = f"{name}." if name else ""
        tensors |= {f"{prefix}mean": layer.mean, f"{prefix}var": layer.var}
    return tensors


def copied(net: nn.Module) -> dict[str, Tensor]:
    """Return :func:`tensors_of` a net as copies on the CPU: those of resident nets are views of one vector."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of(net).items()
    }


@torch.no_grad()
def fill(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a net in place.

    Raises:
        ConfigurationError: their names, shapes or types are not the net's.
    """
    own = tensors_of(net)
    check_tensors(own, tensors)
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    for layer in static_layers(net).values():
        layer.ready = True


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not a net's.

    Raises:
        ConfigurationError: another name, shape or type; names the tensor.
    """
    for name in [*expected, *tensors]:
        wanted, got = (
            f"{str(part[name].dtype).removeprefix('torch.')} {tuple(part[name].shape)}" if name in part else "none"
            for part in (expected, tensors)
        )
        if wanted != got:
            raise ConfigurationError(f"Expected tensor {name!r:.100} of the net to be {wanted} but got {got}")
