"""Values as b-bit codes, which quantisers send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

MOST_BITS = 16

MOST_LOGARITHMIC_BITS = 8
"""Most bits of a logarithmic code."""

VALUES_OF_A_TABLE = 2**15
"""Most values that are looked up in one table; a table for a whole message could take hundreds of times its size."""

Spacing = Literal["affine", "logarithmic"]
"""How the values of a bucket's codes are spaced."""


@dataclass(frozen=True)
class Codes:
    r"""Numbers as codes of a few bits, with a scale and a zero point per bucket.

    Of affine code q in a bucket of scale s and zero point z the value is

    .. math:: x = s (q - z)

    Of logarithmic code q = j + 2^(bits - 1) h, with the sign bit h and 0 <= j < 2^(bits - 1), the value is

    .. math:: x = (-1)^h z s^j

    with z > 0 the smallest magnitude and s >= 1 the ratio of a magnitude to the one below. Both are computed in float64
    (the powers by repeated multiplication, as library powers differ between machines) and rounded once to float32, so
    every receiver reads the same bits.

    Args:
        codes: q, int32, shape (k,), each in [0, 2^bits).
        bits: bits per code, from 1 to 16.
        scales: s, float32, shape (B,), finite.
        zeros: z, float32, finite: shape (B,), or (1,) if all buckets share it.
        sizes: entries of each bucket, int64, shape (B,), in the order of the codes; they add up to k.
        bucket: entries of every bucket but the last, which may have fewer; 0: the buckets are the tensors of a layout.
        spacing: of the values of a bucket's codes.

    Raises:
        ValueError: the shapes do not match, or ``bits`` or ``bucket`` is out of range.
    """

    codes: Tensor
    bits: int
    scales: Tensor
    zeros: Tensor
    sizes: Tensor
    bucket: int
    spacing: Spacing = "affine"

    def __post_init__(self) -> None:
        fewest, most = bits_of(self.spacing)
        if not fewest <= self.bits <= most:
            raise ValueError(f"Expected {fewest} to {most} bits but got {self.bits}")
        if not 0 <= self.bucket < 2**32:
            raise ValueError(f"Expected a bucket of 0 to {2**32 - 1} entries but got {self.bucket}")
        buckets = self.sizes.numel()
        if self.scales.shape != (buckets,) or self.zeros.shape not in {(buckets,), (1,)}:
            raise ValueError(
                f"Expected a scale and a zero point for each of {buckets} buckets but got shapes "
                f"{tuple(self.scales.shape)}, {tuple(self.zeros.shape)}"
            )
        if int(self.sizes.sum()) != self.codes.numel():
            raise ValueError(f"Expected buckets of {self.codes.numel()} codes but got {int(self.sizes.sum())}")

    def to_float(self) -> Tensor:
        """Return the values, float32, shape (k,).

        >>> sizes = torch.tensor([2, 1])
        >>> Codes(torch.tensor([0, 3, 1]), 2, torch.tensor([0.5, 2.0]), torch.tensor([1.0]), sizes, 2).to_float()
        tensor([-0.5000,  1.0000,  0.0000])
        """
        if self.spacing == "logarithmic":
            return self._logarithmic()
        values_k = self.codes.double()
        values_k -= self._per_code(self.zeros)
        values_k *= self._per_code(self.scales)
        return values_k.float()

    def _logarithmic(self) -> Tensor:
        """Return the values of logarithmic codes, looked up in tables of the signed magnitudes of some buckets each."""
        values, first = [], 0
        per_bucket = (self.zeros.expand(self.sizes.numel()), self.scales, self.sizes)
        for least_B, ratio_B, sizes_B in zip(
            *(per.split(VALUES_OF_A_TABLE >> self.bits) for per in per_bucket), strict=True
        ):
            table_BM = signed(magnitudes(least_B, ratio_B, self.bits))
            count = int(sizes_B.sum())
            codes_k = self.codes[first : first + count]
            if table_BM.shape[0] > 1:
                rows_B = torch.arange(table_BM.shape[0], device=table_BM.device)
                rows_k = rows_B.repeat_interleave(sizes_B, output_size=count)
                codes_k = codes_k + table_BM.shape[1] * rows_k
            values.append(table_BM.flatten().index_select(0, codes_k))
            first += count
        return values[0] if len(values) == 1 else torch.cat([self.scales.new_empty(0), *values])

    def _per_code(self, of_bucket_B: Tensor) -> Tensor:
        """Return for every code its bucket's number, float32; a single number is returned unchanged."""
        if of_bucket_B.numel() == 1:
            return of_bucket_B
        return of_bucket_B.repeat_interleave(self.sizes, output_size=self.codes.numel())


def bits_of(spacing: Spacing) -> tuple[int, int]:
    """Return the fewest and the most bits of a code: a logarithmic one has a sign and at least two magnitudes."""
    return (2, MOST_LOGARITHMIC_BITS) if spacing == "logarithmic" else (1, MOST_BITS)


def magnitudes(least_B: Tensor, ratio_B: Tensor, bits: int) -> Tensor:
    """Return the magnitudes of logarithmic codes of each bucket, z s^j, ascending: float32, shape (B, 2^(bits - 1)).

    >>> magnitudes(torch.tensor([0.5]), torch.tensor([2.0]), 3)
    tensor([[0.5000, 1.0000, 2.0000, 4.0000]])
    """
    factors_BM = np.empty((least_B.numel(), 2 ** (bits - 1)))
    factors_BM[:, 0] = least_B.cpu().numpy()
    factors_BM[:, 1:] = ratio_B.cpu().numpy()[:, None]
    with np.errstate(over="ignore", invalid="ignore"):  # the receiver refuses what overflows
        magnitudes_BM = np.multiply.accumulate(factors_BM, axis=1).astype(np.float32)
    return torch.from_numpy(magnitudes_BM).to(least_B.device)


def signed(magnitudes_BM: Tensor) -> Tensor:
    """Return a table of the values of all codes: the magnitudes, then the same below zero, shape (B, 2M)."""
    return torch.cat([magnitudes_BM, -magnitudes_BM], dim=1)


def bucket_sizes(count: int, bucket: int) -> Tensor:
    """Return the sizes of buckets of ``bucket`` entries for ``count`` entries, the last with the rest: int64, (B,).

    >>> bucket_sizes(10, 4)
    tensor([4, 4, 2])
    """
    sizes = torch.full((-(-count // bucket),), bucket, dtype=torch.int64)
    if count % bucket:
        sizes[-1] = count % bucket
    return sizes
