"""safetensors: the tensors of a net and its static batch-norm statistics, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.export.card import Card
from hetfl.export.constructor import is_of_card, limited, make
from hetfl.export.formats import Format, Predict
from hetfl.models.static_batch_norm import static_layers
from hetfl.tree import Tree
from hetfl.types import NetFactory


class Safetensors(Format):
    """A whole net, which is built by its constructor, has the same outputs, and can be trained further."""

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
        if is_of_card(card, net):
            # Sizes from the card are checked before memory is allocated.
            with torch.device("meta"), limited(2 * len(tensors)):
                check_tensors(tensors_of(make(card, net)), tensors)
        built = make(card, net)
        fill(built, tensors)
        return built.eval()

    def outputs(self, net: nn.Module, predict: Predict, inputs_N: Tree) -> Tensor:
        """Return the outputs of the net, which need not be predictions."""
        outputs: Tensor = net(inputs_N)
        return outputs


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the state of a net and its static batch-norm statistics, by name, without copies.

    The statistics are not in ``state_dict``, because clients do not send or average them.

    Raises:
        ConfigurationError: the state has a value that is not a tensor.
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
    """Return copies of :func:`tensors_of` a net on the CPU, as tensors of resident nets are views of one vector."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors_of(net).items()
    }


@torch.no_grad()
def fill(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a net in place.

    Raises:
        ConfigurationError: names, shapes or types differ from those of the net.
    """
    targets = tensors_of(net)
    check_tensors(targets, tensors)
    for name, tensor in targets.items():
        tensor.copy_(tensors[name])
    for layer in static_layers(net).values():
        layer.ready = True


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit a net.

    Raises:
        ConfigurationError: a name, shape or type differs; the message names the tensor.
    """
    for name in [*expected, *tensors]:
        wanted, got = (
            f"{str(part[name].dtype).removeprefix('torch.')} {tuple(part[name].shape)}" if name in part else "none"
            for part in (expected, tensors)
        )
        if wanted != got:
            raise ConfigurationError(f"Expected tensor {name!r:.100} of the net to be {wanted} but got {got}")
