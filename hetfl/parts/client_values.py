"""The values that a client trained, as the server knows them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.submodel import add
from hetfl.updates import Update


def client_values(begun: Mapping[str, Tensor], update: Update, index: Index) -> dict[str, Tensor]:
    """Return a client's values after its round: those that it began with, plus its decoded update.

    Args:
        begun: tensors of the global model at the start of the round, by name.
        update: the client's update.
        index: positions of the update's entries in the global model.
    """
    part, values = part_of(index), {name: tensor.clone() for name, tensor in begun.items()}
    vector_D = part.spread(update.whole())
    for name, delta in part.layout.views(vector_D).items():
        if name in values:
            add(values[name], part[name], delta.to(values[name]))
    return values
