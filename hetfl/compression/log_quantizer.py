"""A sign and one of a few magnitudes that are evenly spaced on a logarithmic scale."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hetfl.codes import MOST_LOGARITHMIC_BITS, Spacing, magnitudes
from hetfl.compression.base import Context
from hetfl.compression.quantiser import Quantiser, per_value, uniform
from hetfl.compression.scope import Scope
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import Update

WIDEST = 2.0**60
"""Largest ratio of the largest magnitude to the smallest one; smaller values are sent as the smallest magnitude."""

MOST_COMPARED = 16
"""Most borders with which all values of a message are compared one by one; more are searched."""


class LogQuantizer(Quantiser):
    r"""Send a sign and the nearest of M = 2^(bits − 1) log-spaced magnitudes of each value.

    .. math:: m_j = z s^j, \quad j = 0 \dots M - 1, \quad s = (h / z)^{1 / (M - 1)}

    where h is the largest magnitude of the bucket, and z = h / ``span``, or the smallest magnitude that is sent if
    ``span`` is null. Affine codes waste codes on values below the threshold λ, where a thresholded update has none;
    these codes have all their magnitudes in [λ, h]. Each value is off by at most the share (s − 1)/(s + 1) of it.

    Meant for the values that a sparsifier keeps (:class:`hetfl.compression.Chain`). Without one, ``span`` is needed:
    a dense vector has values near 0, which no logarithmic code can express. The error of such values can exceed them,
    so error feedback is refused then.

    Args:
        bits: bits of a code, 2 to 8, the sign included.
        scope: one bucket for all values of a message (``global``), or one per tensor (``layer``).
        bucket: number of consecutive values that share magnitudes; null: as ``scope`` says.
        span: h / z, above 1; null: from the values that are sent.
        stochastic: round at random to one of the two magnitudes around a value (below z: to −z or z), so that
            E C(p) = p; needs ``span``.

    Raises:
        ConfigurationError: a setting is out of range, or ``stochastic`` comes without ``span``.
    """

    spacing: ClassVar[Spacing] = "logarithmic"

    def __init__(
        self,
        bits: int = 3,
        scope: Scope = "global",
        bucket: int | None = None,
        span: float | None = None,
        stochastic: bool = False,
    ) -> None:
        super().__init__(bits, bucket, fewest=2, most=MOST_LOGARITHMIC_BITS)
        if span is not None and not 1 < span <= WIDEST:
            raise ConfigurationError(f"Expected span above 1 and at most {WIDEST:g} but got {span}")
        if stochastic and span is None:
            raise ConfigurationError("Expected a span for stochastic: true but got null")
        self.scope, self.span, self.stochastic = scope, span, stochastic

    @property
    def expands(self) -> bool:
        """Whether values near 0 may be sent as far larger ones, as ``span`` allows."""
        return self.span is not None

    @property
    def dense(self) -> bool:  # noqa: D102
        return self.span is not None

    def apply(self, p_D: Tensor, context: Context) -> Update:
        """Return all values as codes; see :meth:`Compressor.apply`.

        Raises:
            ConfigurationError: there is no ``span``.
        """
        if not self.dense:
            raise ConfigurationError(
                "Expected LogQuantizer behind a sparsifier (hetfl.compression.Chain), or with a span, but got it alone"
            )
        return super().apply(p_D, context)

    def quantised(self, update: Update, layout: Layout | None, generator: torch.Generator | None) -> Update:  # noqa: D102
        return super().quantised(update, layout if self.scope == "layer" else None, generator)

    def quantise(  # noqa: D102
        self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        magnitude_k = values_k.abs()
        least_B, ratio_B = self._spaced(magnitude_k, sizes_B)
        table_BM = magnitudes(least_B, ratio_B, self.bits).double()
        if self.stochastic:
            step_k, negative_k = _drawn(values_k, table_BM, sizes_B, generator)
        else:
            borders = (table_BM[:, 1:] + table_BM[:, :-1]) / 2
            step_k, negative_k = _above(magnitude_k, borders, sizes_B), values_k < 0
        return step_k + table_BM.shape[1] * negative_k, ratio_B, least_B

    def _spaced(self, magnitude_k: Tensor, sizes_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smallest magnitude and the ratio of each bucket, as they travel: float32, shape (B,)."""
        if not sizes_B.numel():
            return magnitude_k.new_zeros(0).float(), magnitude_k.new_ones(0).float()
        high_B = _per_bucket(magnitude_k, "max", sizes_B, initial=0)
        if self.span is None:
            positive_k = magnitude_k.where(magnitude_k > 0, math.inf)
            low_B = _per_bucket(positive_k, "min", sizes_B, initial=math.inf)
            low_B = torch.minimum(low_B, high_B).clamp(min=high_B / WIDEST)
        else:
            low_B = high_B / self.span
        low_B = low_B.float()
        steps = 2 ** (self.bits - 1) - 1
        ratio_B = torch.where(low_B > 0, high_B / low_B, 1.0).pow(1 / steps).float().clamp(min=1)
        return low_B, ratio_B


def _per_bucket(magnitude_k: Tensor, which: Literal["max", "min"], sizes_B: Tensor, initial: float) -> Tensor:
    """Return the largest or the smallest magnitude of each bucket, shape (B,); ``initial`` for an empty bucket."""
    if sizes_B.numel() == 1 and magnitude_k.numel():  # several times faster
        return (magnitude_k.amax() if which == "max" else magnitude_k.amin())[None]
    return torch.segment_reduce(magnitude_k, which, lengths=sizes_B, initial=initial)


def _above(magnitude_k: Tensor, borders: Tensor, sizes_B: Tensor) -> Tensor:
    """Return how many of its bucket's borders (B, N), ascending, each magnitude is above: int64, shape (k,).

    Comparisons with a few borders need no branches, and take a tenth of a binary search's time.
    """
    one = borders.shape[0] == 1
    if one and borders.shape[1] > MOST_COMPARED:
        return torch.bucketize(magnitude_k, borders[0])
    above_k = torch.zeros_like(magnitude_k, dtype=torch.int16)  # up to 256 borders
    for border_B in borders.unbind(dim=1):
        above_k += magnitude_k > (border_B if one else per_value(border_B, sizes_B, len(magnitude_k)))
    return above_k.long()


def _drawn(
    values_k: Tensor, table_BM: Tensor, sizes_B: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return one of the two magnitudes around each value at random, so that the mean is right, and its sign."""
    signed_BM = torch.cat([-table_BM.flip(1), table_BM], dim=1)  # ascending
    lower_k = (_above(values_k, signed_BM, sizes_B) - 1).clamp(0, signed_BM.shape[1] - 2)
    rows_k = per_value(torch.arange(sizes_B.numel(), device=values_k.device), sizes_B, len(values_k))
    low_k, high_k = signed_BM[rows_k, lower_k], signed_BM[rows_k, lower_k + 1]
    gap_k = high_k - low_k
    share_k = torch.where(gap_k > 0, (values_k - low_k) / gap_k, 0.0)
    at_k = lower_k + (uniform(values_k, generator) < share_k)
    count = table_BM.shape[1]
    negative_k = at_k < count
    return torch.where(negative_k, count - 1 - at_k, at_k - count), negative_k
