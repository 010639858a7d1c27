"""Whether entries compete with all others of a vector, or with those of their tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from hetfl.layout import Layout
from hetfl.updates import SparseUpdate

Scope = Literal["global", "layer"]
"""``global``: one choice over the whole vector; ``layer``: one per tensor."""


def per_tensor(p_D: Tensor, layout: Layout, choose: Callable[[str, Tensor], SparseUpdate]) -> SparseUpdate:
    """Return what is chosen of every tensor, as one update.

    Args:
        p_D: shape (D,).
        layout: the tensors in it.
        choose: what is sent of one tensor, given its name and its entries (n,).
    """
    values, indices = [p_D.new_empty(0)], [torch.empty(0, dtype=torch.int64, device=p_D.device)]
    for name, offset, part in zip(layout.shapes, layout.offsets, p_D.split(layout.sizes), strict=True):
        found = choose(name, part)
        values.append(found.values)
        indices.append(found.indices + offset)
    return SparseUpdate(torch.cat(values), torch.cat(indices), p_D.numel())
