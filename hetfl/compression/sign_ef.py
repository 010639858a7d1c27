"""One bit per value."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.buckets import reduced
from hetfl.compression.quantiser import Quantiser


class SignEF(Quantiser):
    r"""Send signs, scaled by the mean magnitude of their bucket; meant for error feedback.

    .. math:: C(p)_i = \frac{\lVert b \rVert_1}{|b|} \, \mathrm{sign}(p_i)

    where b is the bucket of p_i, and the sign of 0 is +1. A contraction in every bucket: :math:`\lVert C(b) - b
    \rVert^2 = \lVert b \rVert_2^2 - \lVert b \rVert_1^2 / |b|`. Karimireddy et al., Error feedback fixes SignSGD, ICML
    2019, arXiv 1901.09847.

    Args:
        bucket: number of consecutive values with a scale of their own; None: those of one tensor, as in the paper.

    Raises:
        ConfigurationError: ``bucket`` is out of range.
    """

    def __init__(self, bucket: int | None = None) -> None:
        super().__init__(1, bucket)

    def quantise(  # noqa: D102
        self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        sums_B = reduced(values_k.abs(), sizes_B, "sum")
        # A code is 0 or 1 and the zero point 1/2, so the scale is twice the magnitude.
        scales_B = 2 * sums_B / sizes_B.clamp(min=1)
        return values_k >= 0, scales_B, values_k.new_tensor([0.5])
