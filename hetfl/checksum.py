"""A checksum of tensors' values, to notice changes that torch does not count."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return the CRC-32 of the bytes of tensors, one after the other; it depends on every bit and on the order.

    >>> checksum([torch.tensor([1.0, 2.0])]) == checksum([torch.tensor([2.0, 1.0])])
    False
    """
    value = 0
    for tensor in tensors:
        data = tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu()
        value = zlib.crc32(data.numpy().data, value)
    return value
