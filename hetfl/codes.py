"""Values as b-bit codes, which quantisers send."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_BITS = 16


@dataclass(frozen=True)
class Codes:
    r"""Numbers as codes of a few bits, with a scale and a zero point per bucket.

    The value of code q in a bucket with scale s and zero point z is

    .. math:: x = s (q - z)

    computed in float64 and rounded once to float32, so that every receiver gets the same bits.

    Args:
        codes: q, int32, shape (k,), each in [0, 2^bits).
        bits: bits per code, from 1 to 16.
        scales: s, float32, shape (B,), finite.
        zeros: z, float32, finite: shape (B,), or (1,) if all buckets share it.
        sizes: entries of each bucket, int64, shape (B,), in the order of the codes; they add up to k.
        bucket: entries of every bucket but the last, which may have fewer; 0: the buckets are the tensors of a layout.

    Raises:
        ValueError: the shapes do not match, or ``bits`` or ``bucket`` is out of range.
    """

    codes: Tensor
    bits: int
    scales: Tensor
    zeros: Tensor
    sizes: Tensor
    bucket: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MOST_BITS:
            raise ValueError(f"Expected 1 to {MOST_BITS} bits but got {self.bits}")
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
        values_k = self.codes.double()
        values_k -= self._per_code(self.zeros)
        values_k *= self._per_code(self.scales)
        return values_k.float()

    def _per_code(self, of_bucket_B: Tensor) -> Tensor:
        """Return for every code its bucket's number, float32; a single number is returned unchanged."""
        if of_bucket_B.numel() == 1:
            return of_bucket_B
        return of_bucket_B.repeat_interleave(self.sizes, output_size=self.codes.numel())


def bucket_sizes(count: int, bucket: int) -> Tensor:
    """Return the sizes of buckets of ``bucket`` entries for ``count`` entries, the last with the rest: int64, (B,).

    >>> bucket_sizes(10, 4)
    tensor([4, 4, 2])
    """
    sizes = torch.full((-(-count // bucket),), bucket, dtype=torch.int64)
    if count % bucket:
        sizes[-1] = count % bucket
    return sizes
