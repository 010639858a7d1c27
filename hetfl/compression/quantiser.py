"""What all quantisers share: which values have a scale together."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from hetfl.codes import MOST_BITS, Codes, Spacing, bucket_sizes
from hetfl.compression.base import Compressor, Context
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, Update


class Quantiser(Compressor):
    """A compressor that sends every value it is given as a code of a few bits.

    Args:
        bits: bits of a code.
        bucket: number of consecutive values that share a scale; None: those of one tensor, or of a vector without a
            layout all.
        fewest: of bits.
        most: of bits.

    Raises:
        ConfigurationError: ``bits`` or ``bucket`` is out of range.
    """

    sparse = False

    spacing: ClassVar[Spacing] = "affine"
    """How the values of a bucket's codes are spaced."""

    def __init__(self, bits: int, bucket: int | None, *, fewest: int = 1, most: int = MOST_BITS) -> None:
        if not fewest <= bits <= most:
            raise ConfigurationError(f"Expected bits in {fewest}..{most} for {type(self).__name__} but got {bits}")
        if bucket is not None and not 1 <= bucket < 2**32:
            raise ConfigurationError(f"Expected bucket in 1..{2**32 - 1} or null but got {bucket}")
        self.bits, self.bucket = bits, bucket

    @property
    def value_bits(self) -> int:  # noqa: D102
        return self.bits

    @property
    def dense(self) -> bool:
        """Whether it can code values of which some are near 0, as those of a dense vector."""
        return True

    @abstractmethod
    def quantise(self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """Return codes (k,), scales (B,), and zero points (B,) or (1,), as :class:`hetfl.codes.Codes` has them.

        Args:
            values_k: finite, float64, shape (k,).
            sizes_B: values per bucket, in order, int64; they add up to k.
            generator: source of randomness of a quantiser that draws; None: torch's own.

        Returns:
            Codes in any dtype; scales and zero points in float64.
        """

    def apply(self, p_D: Tensor, context: Context) -> Update:  # noqa: D102
        return self.quantised(DenseUpdate(p_D), context.layout, context.generator)

    def quantised(self, update: Update, layout: Layout | None, generator: torch.Generator | None) -> Update:
        """Return the same update with codes in the place of its values."""
        values_k, count = update.values, update.num_sent
        if self.bucket is None and layout is not None:
            bucket, sizes_B = 0, update.num_sent_per_tensor(layout)
        else:
            bucket = self.bucket or max(1, count)
            sizes_B = bucket_sizes(count, bucket)
        sizes_B = sizes_B.to(values_k.device)
        codes_k, scales, zeros = self.quantise(values_k.double(), sizes_B, generator)
        codes = Codes(codes_k.int(), self.bits, scales.float(), zeros.float(), sizes_B, bucket, self.spacing)
        return update.with_codes(codes, values_k.dtype)


def per_value(of_bucket_B: Tensor, sizes_B: Tensor, count: int) -> Tensor:
    """Return for every value what its bucket has, shape (k,).

    Args:
        of_bucket_B: a number of each bucket.
        sizes_B: values in each bucket.
        count: number of all values k, with which a GPU need not be asked for the sum of the sizes.
    """
    return of_bucket_B.repeat_interleave(sizes_B, output_size=count)


def uniform(like_k: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return numbers uniform in [0, 1), drawn on the CPU so that devices agree."""
    return torch.rand(like_k.shape, generator=generator, dtype=torch.float64).to(like_k.device)


def rounded(numbers_k: Tensor, stochastic: bool, generator: torch.Generator | None) -> Tensor:
    """Return whole numbers: the nearest, or, if ``stochastic``, one of the two around, so that the mean is kept."""
    return (numbers_k + uniform(numbers_k, generator)).floor() if stochastic else numbers_k.round()
