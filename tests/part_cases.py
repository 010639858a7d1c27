"""Parts of a small global model, drawn by Hypothesis."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetfl.part import Part

SHAPES = {"conv": (5, 4, 2), "scale": (), "head": (6, 5), "bias": (6,)}
WHOLE = Part({name: tuple(slice(0, size) for size in shape) for name, shape in SHAPES.items()})


@st.composite
def blocks(draw: st.DrawFn) -> Part:
    """Leading blocks of all tensors."""
    sizes = {name: [draw(st.integers(1, size)) for size in shape] for name, shape in SHAPES.items()}
    return Part({name: tuple(slice(0, size) for size in each) for name, each in sizes.items()})


@st.composite
def parts_like(draw: st.DrawFn, block: Part) -> Part:
    """Windows, positions and masks in the shapes of a block."""

    def dimension(of: int, held: int) -> slice | torch.Tensor:
        if draw(st.booleans()):
            start = draw(st.integers(0, of - held))
            return slice(start, start + held)
        chosen = draw(st.permutations(range(of)))[:held]
        return torch.tensor(sorted(chosen))

    index = {
        name: tuple(dimension(of, part.stop) for of, part in zip(SHAPES[name], entry, strict=True))  # type: ignore[union-attr]
        for name, entry in block.items()
    }
    size = block.layout.size
    mask = draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
    return Part(index, None if mask is None else torch.tensor(mask))


def held_by(part: Part) -> dict[str, NDArray[np.bool_]]:
    """Return which entries of the global tensors a part holds, found position by position."""
    found = {name: np.zeros(SHAPES[name], dtype=bool) for name in part}
    masks = {} if part.mask_D is None else part.layout.views(part.mask_D)
    for name, entry in part.items():
        ranges = [list(range(d.start, d.stop)) if isinstance(d, slice) else d.tolist() for d in entry]
        for place in np.ndindex(*map(len, ranges)):
            position = tuple(each[i] for each, i in zip(ranges, place, strict=True))
            found[name][position] = bool(masks[name][place]) if name in masks else True
    return found
