"""Even steps between the least and the greatest value."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.buckets import reduced
from hetfl.compression.quantiser import Quantiser, per_value, rounded


class DynamicRange(Quantiser):
    r"""Send steps of the bucket's range in b bits, with a zero point such that 0 is exact.

    .. math:: z = \mathrm{round}\left(\frac{-\min}{\max - \min} (2^b - 1)\right), \quad
        s = \max\left(\frac{-\min}{z}, \frac{\max}{2^b - 1 - z}\right), \quad
        C(p)_i = s \, (\mathrm{clip}(\mathrm{round}(p_i / s) + z, 0, 2^b - 1) - z)

    where max and min are over the bucket and 0, and a quotient by 0 is left out. With two bits or more z is moved to 1
    or 2^b − 2 where else one of both signs had no code; so the step s is just wide enough for z to be whole, and
    nothing is clipped. With a single bit only the sign that reaches further has a code; the other one is clipped to 0.
    The affine scheme of Jacob et al., CVPR 2018, arXiv 1712.05877, section 2.1.

    Args:
        bits: b, 1 to 16.
        bucket: number of consecutive values with a range of their own; None: those of one tensor.
        stochastic: round up or down at random, so that the mean is kept of what is not clipped; else to the nearest,
            half to even.

    Raises:
        ConfigurationError: ``bits`` or ``bucket`` is out of range.
    """

    def __init__(self, bits: int = 8, bucket: int | None = 512, stochastic: bool = False) -> None:
        super().__init__(bits, bucket)
        self.stochastic = stochastic

    def quantise(  # noqa: D102
        self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        most = 2**self.bits - 1
        least_B = reduced(values_k, sizes_B, "min")
        greatest_B = reduced(values_k, sizes_B, "max")
        span_B = greatest_B - least_B
        zeros_B = torch.where(span_B > 0, (-least_B / span_B * most).round(), 0.0)
        if most > 1:  # each sign that occurs has a code
            zeros_B = zeros_B.clamp((least_B < 0).double(), most - (greatest_B > 0).double())
        below_B = torch.where(zeros_B > 0, -least_B / zeros_B, 0.0)
        above_B = torch.where(zeros_B < most, greatest_B / (most - zeros_B), 0.0)
        scales_B = torch.maximum(below_B, above_B).float().double()  # as they travel
        scale_k = per_value(scales_B, sizes_B, len(values_k))
        steps_k = torch.where(scale_k > 0, values_k / scale_k, 0.0)
        codes_k = rounded(steps_k, self.stochastic, generator) + per_value(zeros_B, sizes_B, len(values_k))
        return codes_k.clamp(0, most), scales_B, zeros_B
