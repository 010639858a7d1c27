"""Numbers of consecutive values together: of a bucket, of a filter."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def reduced(values_k: Tensor, sizes_B: Tensor, reduction: Literal["sum", "max", "min"]) -> Tensor:
    """Return per bucket the sum, or the greatest or least of its values and 0: shape (B,).

    >>> reduced(torch.tensor([1.0, 2.0, -3.0]), torch.tensor([2, 0, 1]), "max")
    tensor([2., 0., 0.])
    """
    if not sizes_B.numel():
        return values_k.new_zeros(0)
    return torch.segment_reduce(values_k, reduction, lengths=sizes_B, initial=0)
