"""Randomised Hadamard rotations, which spread a vector's large entries over many."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hetfl.permutation import mix

MOST_LOG = 30
"""Largest logarithm of a block's size."""
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Rotation:
    r"""An orthonormal map of vectors that a seed names: random signs, then a Hadamard transform of every segment.

    .. math:: R x = \frac{1}{\sqrt{n}} H_n (s \odot x), \qquad R^{-1} y = s \odot \frac{1}{\sqrt{n}} H_n y

    with n the segment's size, :math:`H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix}`, :math:`H_1 = 1`,
    and signs s = ±1. A segment lies in one tensor and its size is a power of two: a tensor is cut into blocks, and what
    is left of it into falling powers of two, so nothing is padded. All additions are in float64 in a fixed order, so
    every machine gets the same bits.

    Caldas, Konečný, McMahan, Talwalkar: Expanding the Reach of Federated Learning by Reducing Client Resource
    Requirements, 2018, arXiv 1812.07210; Suresh et al., Distributed Mean Estimation with Limited Communication, ICML
    2017, arXiv 1611.00429.

    Attributes:
        log: logarithm to the base 2 of the size of a block, 1 to 30.
        seed: 64 bits; sign i of a vector is the highest bit of ``mix(seed + (i + 1) * golden ratio)``, set for −1.

    Raises:
        ValueError: ``log`` is out of range.
    """

    log: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.log <= MOST_LOG:
            raise ValueError(f"Expected blocks of 2^1 to 2^{MOST_LOG} entries but got 2^{self.log}")

    def turned(self, vector_D: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return R x, float64, shape (D,).

        Args:
            vector_D: x, on the CPU; of tensors one after the other.
            sizes: entries of each tensor, D in all.
        """
        return self._transformed(vector_D.double() * self._signs(vector_D.numel()), sizes)

    def back(self, vector_D: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return R⁻¹ y, float64, shape (D,), of what :meth:`turned` returned, up to rounding."""
        return self._transformed(vector_D.double(), sizes) * self._signs(vector_D.numel())

    def _signs(self, count: int) -> Tensor:
        words = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(self.seed)
        return 1.0 - 2.0 * torch.from_numpy((mix(words) >> np.uint64(63)).astype(np.float64))

    def _transformed(self, vector_D: Tensor, sizes: Sequence[int]) -> Tensor:
        turned_D = torch.empty_like(vector_D)
        for size, starts in segments(sizes, 1 << self.log).items():
            positions_SN = torch.tensor(starts)[:, None] + torch.arange(size)
            turned_D[positions_SN] = hadamard(vector_D[positions_SN])
        return turned_D


def segments(sizes: Sequence[int], block: int) -> dict[int, list[int]]:
    """Return the first positions of all segments by their size; the tensors lie one after the other.

    >>> segments([11, 1], block=4)
    {4: [0, 4], 2: [8], 1: [10, 11]}
    """
    starts: defaultdict[int, list[int]] = defaultdict(list)
    position = 0
    for size in sizes:
        end = position + size
        while position < end:
            length = min(block, 1 << (end - position).bit_length() - 1)
            starts[length].append(position)
            position += length
    return dict(starts)


def hadamard(rows_SN: Tensor) -> Tensor:
    """Return the orthonormal Hadamard transform of every row, shape (S, N), N a power of two.

    Of the entries at a distance of 1, then 2, 4, … up to N / 2 sums and differences are taken; then all are divided by
    the square root of N.
    """
    count, size = rows_SN.shape
    half = 1
    while half < size:
        pairs = rows_SN.view(count, size // (2 * half), 2, half)
        left, right = pairs[:, :, 0], pairs[:, :, 1]
        rows_SN = torch.stack([left + right, left - right], dim=2).view(count, size)
        half *= 2
    return rows_SN / math.sqrt(size)
