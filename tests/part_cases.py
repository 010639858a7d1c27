"""Hypothesis strategies that draw parts of a small global model."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from hetfl.part import Part, only
from hetfl.recipe import MaskRecipe, Recipe, draw_positions

SHAPES = {"conv": (5, 4, 2), "scale": (), "head": (6, 5), "bias": (6,)}
WHOLE = Part({name: tuple(slice(0, size) for size in shape) for name, shape in SHAPES.items()})


@st.composite
def blocks(draw: st.DrawFn) -> Part:
    """Draw leading blocks of all tensors."""
    sizes = {name: [draw(st.integers(1, size)) for size in shape] for name, shape in SHAPES.items()}
    return Part({name: tuple(slice(0, size) for size in each) for name, each in sizes.items()})


@st.composite
def parts_like(draw: st.DrawFn, block: Part) -> Part:
    """Draw a part with windows, positions and masks in the shapes of a block."""

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


@st.composite
def drawn_parts(draw: st.DrawFn) -> tuple[Part, Part, Part]:
    """Draw a part with a recipe, its leading block, and all of the global tensors.

    The recipe belongs to the part, to other seeds, or to a larger part from which rows or tensors were removed.
    """
    n, m = draw(st.integers(1, 300)), draw(st.integers(1, 40))
    of = {"conv": (n, m), "bias": (n,), "head": (7, n), "scale": ()}
    whole = Part({name: tuple(slice(0, size) for size in shape) for name, shape in of.items()})
    held = {size: draw(st.integers(1, size)) for size in (n, m)} | {7: 7}
    seeds = {size: draw(st.integers(0, 2**63 - 1)) for size in held}
    drawn = {size: draw_positions(seeds[size], count, size) for size, count in held.items()}
    entry = {size: drawn[size] if count < size else slice(0, size) for size, count in held.items()}
    index = Part({name: tuple(entry[size] for size in shape) for name, shape in of.items()})
    names, density = draw(st.frozensets(st.sampled_from(sorted(of)))), draw(st.floats(0, 1))
    densities = {name: density if draw(st.booleans()) else draw(st.floats(0, 1)) for name in names}
    mask = MaskRecipe(draw(st.integers(0, 2**63 - 1)), densities)
    mask_D = mask.mask(dict(zip(index, index.layout.sizes, strict=True))) if draw(st.booleans()) else None
    part = Part(index, mask_D, Recipe(seeds, mask))
    change = draw(st.sampled_from(["none", "rows", "only", "seeds"]))
    if change == "seeds":
        others = Recipe(
            {size: seed ^ 1 for size, seed in seeds.items()}, MaskRecipe(mask.seed ^ 1, dict.fromkeys(names, 0.5))
        )
        part = Part(index, mask_D, others)
    elif change == "rows":
        rows = part.rows(frozenset({"head"}), torch.arange(7) != draw(st.integers(0, 6)))
        part = Part(rows, rows.mask_D, part.recipe)
    elif change == "only":
        less = only(part, frozenset({"conv", "head"}))
        part = Part(less, less.mask_D, part.recipe)
    block = Part({name: tuple(slice(0, size) for size in shape) for name, shape in part.layout.shapes.items()})
    return part, block, Part({name: whole[name] for name in part})


def held_by(part: Part) -> dict[str, NDArray[np.bool_]]:
    """Return a mask per global tensor of the entries that a part holds, computed position by position."""
    held = {name: np.zeros(SHAPES[name], dtype=bool) for name in part}
    masks = {} if part.mask_D is None else part.layout.views(part.mask_D)
    for name, entry in part.items():
        ranges = [list(range(d.start, d.stop)) if isinstance(d, slice) else d.tolist() for d in entry]
        for place in np.ndindex(*map(len, ranges)):
            position = tuple(each[i] for each, i in zip(ranges, place, strict=True))
            held[name][position] = bool(masks[name][place]) if name in masks else True
    return held
