"""Which level holds which entries: maps of parts, with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hetfl.analysis.snapshot_reader import Snapshot
from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.submodel import put

NOBODY = -1
"""The number in a map for an entry that no level holds."""


def held_entries(part: Part, shapes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return which entries a part holds: by tensor, bool of its shape.

    Args:
        part: the part, in coordinates of the global model.
        shapes: the tensors of the global model by name.
    """
    held = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in shapes.items()}
    of_index = part.spread(torch.ones(part.size, dtype=torch.bool))
    for (name, entry), inside in zip(part.items(), part.layout.views(of_index).values(), strict=True):
        put(held[name], entry, inside)
    return held


def smallest_levels(snapshot: Snapshot, nets: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the number of the smallest level that holds each entry of the model after a round.

    Args:
        snapshot: the model.
        nets: a net of each level, the largest first, built like those of the run.

    Returns:
        By tensor, int64 of its shape: 0 for the first level of ``nets``, and so on; :data:`NOBODY` where none holds it.

    Raises:
        ConfigurationError: a net is not one of its level.
    """
    weights = dict(snapshot.weights)
    maps = {name: torch.full(tensor.shape, NOBODY, dtype=torch.int64) for name, tensor in weights.items()}
    for number, (level, net) in enumerate(nets.items()):
        for name, held in held_entries(snapshot.part(net, level), weights).items():
            maps[name][held] = number
    return maps


def outside_zeroed(tensors: Mapping[str, Tensor], part: Part) -> dict[str, Tensor]:
    """Return copies of the global model's tensors with 0 where a part holds nothing: the part, in the whole net.

    Args:
        tensors: the global model's tensors by name.
        part: the part.
    """
    held = held_entries(part, tensors)
    return {name: tensor.detach() * held[name] for name, tensor in tensors.items()}


def as_matrix(values: Tensor) -> Tensor:
    """Return a tensor of two and more dimensions as a matrix: a row per output, all other dimensions flattened.

    Raises:
        ConfigurationError: the tensor has fewer than two dimensions.
    """
    if values.dim() < 2:
        raise ConfigurationError(f"Expected a tensor of two or more dimensions but got shape {tuple(values.shape)}")
    return values.flatten(1)


def matrices_among(tensors: Mapping[str, Tensor], names: Sequence[str] | None) -> list[str]:
    """Return the given names, or those of all tensors of two and more dimensions.

    Raises:
        ConfigurationError: a name is unknown, or its tensor has fewer than two dimensions.
    """
    known = [name for name, tensor in tensors.items() if tensor.dim() > 1]
    wanted = known if names is None else list(names)
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigurationError(
            f"Expected names of tensors of two or more dimensions but got {', '.join(map(repr, unknown))}"
        )
    return wanted
