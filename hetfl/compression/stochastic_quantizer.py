"""Levels between zero and a bucket's norm, chosen at random so that the mean is right."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hetfl.compression.buckets import reduced
from hetfl.compression.quantiser import Quantiser, per_value, rounded


class StochasticQuantizer(Quantiser):
    r"""Round every value at random to one of s levels of its bucket's norm: unbiased, E C(p) = p.

    .. math:: C(p)_i = \lVert b \rVert \, \mathrm{sign}(p_i) \, \xi_i / s

    where b is the bucket of p_i, s = 2^(bits − 1) − 1, and ξ_i is one of the two whole numbers around s |p_i| / ‖b‖,
    the upper one with the probability of the fraction. Smaller buckets mean less variance and more scales.

    Meant without error feedback. With the norm ``l2``, E‖C(b) − b‖² is at most min(n / s², √n / s) ‖b‖² for n values
    (the paper's lemma 3.1): with more than s² of them, or if their number is open, residuals could grow without end,
    and error feedback is refused. With ``max`` every value is off by less than ‖b‖ / s.

    Alistarh et al., QSGD, NeurIPS 2017, arXiv 1610.02132 (with buckets as in its section 4, and codes of fixed length
    in the place of Elias's). The quantiser of FedPAQ, Reisizadeh et al., AISTATS 2020, arXiv 1909.13014.

    Args:
        bits: bits of a code, 2 to 16: a sign and s levels above zero.
        bucket: number of consecutive values with a norm of their own; None: those of one tensor.
        norm: of a bucket, ``l2`` as in the paper, or ``max``, which uses the levels better.

    Raises:
        ConfigurationError: ``bits`` or ``bucket`` is out of range.
    """

    def __init__(self, bits: int = 8, bucket: int | None = 512, norm: Literal["l2", "max"] = "max") -> None:
        super().__init__(bits, bucket, fewest=2)
        self.norm = norm

    @property
    def levels(self) -> int:
        """Number s of levels above zero."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def expands(self) -> bool:
        """Whether a bucket has more than s² values, or any number, and the norm ``l2``."""
        return self.norm == "l2" and (self.bucket is None or self.bucket > self.levels**2)

    def quantise(  # noqa: D102
        self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        if self.norm == "l2":
            norms_B = reduced(values_k.square(), sizes_B, "sum").sqrt()
        else:
            norms_B = reduced(values_k.abs(), sizes_B, "max")
        scales_B = (norms_B / self.levels).float().double()  # as they travel: the mean is that of what the server reads
        scale_k = per_value(scales_B, sizes_B, len(values_k))
        steps_k = torch.where(scale_k > 0, values_k.abs() / scale_k, 0.0)
        level_k = rounded(steps_k, True, generator).clamp(max=self.levels)
        return self.levels + values_k.sign() * level_k, scales_B, values_k.new_full((1,), self.levels)
