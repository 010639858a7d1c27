"""Multiples of a power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.quantiser import Quantiser, rounded
from hetfl.errors import ConfigurationError


class FixedPoint(Quantiser):
    r"""Send multiples of :math:`2^{-f}` in b bits, saturating: no scale depends on the data, and 0 is exact.

    .. math:: C(p)_i = 2^{-f} \, \mathrm{clip}(\mathrm{round}(2^f p_i), -2^{b-1}, 2^{b-1} - 1)

    What saturates stays in the residual. Gupta et al., Deep learning with limited numerical precision, ICML 2015, arXiv
    1502.02551.

    Args:
        bits: b, 2 to 16.
        fraction_bits: f.
        stochastic: round up or down at random, so that the mean is kept of what does not saturate; else to the nearest,
            half to even.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    def __init__(self, bits: int = 8, fraction_bits: int = 10, stochastic: bool = False) -> None:
        super().__init__(bits, None, fewest=2)
        if not -100 <= fraction_bits <= 100:
            raise ConfigurationError(f"Expected fraction_bits in -100..100 but got {fraction_bits}")
        self.fraction_bits, self.stochastic = fraction_bits, stochastic

    def quantise(  # noqa: D102
        self, values_k: Tensor, sizes_B: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, ...]:
        zero = 2 ** (self.bits - 1)
        steps_k = rounded(values_k * 2.0**self.fraction_bits, self.stochastic, generator)
        scales_B = values_k.new_full(sizes_B.shape, 2.0**-self.fraction_bits)
        return steps_k.clamp(-zero, zero - 1) + zero, scales_B, values_k.new_tensor([zero])
