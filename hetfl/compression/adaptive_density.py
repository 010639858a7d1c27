"""Send as much as a client's uplink carries in a given time."""

from __future__ import annotations

import math

from torch import Tensor

from hetfl.compression.base import Compressor, Context
from hetfl.compression.message_size import affordable_count
from hetfl.compression.threshold_pass import Parts
from hetfl.compression.top_k import split_largest, top_count
from hetfl.errors import ConfigurationError
from hetfl.updates import SparseUpdate


class AdaptiveDensity(Compressor):
    r"""Send the k_n entries of largest magnitude that client n's uplink carries in T seconds: uploads end together.

    .. math:: k_n = \max \{ k : \tfrac18 (32\,k + \log_2 \tbinom{D_n}{k}) + \text{header} \le T B_n \}

    with :math:`B_n` the uplink in bytes per second, :math:`D_n` the length of the client's vector, and 32 the bits of a
    value, or those that values (in a chain, codes) have on the wire. At least one entry is sent, and at most all. The
    indices' code is within 15 % of their entropy; scales of a quantiser and buffers that travel beside the vector are
    not counted.

    After FlexCom, Li et al., To talk or to work, INFOCOM 2021, where devices compress by what sending costs them in
    energy; here by time alone.

    Args:
        seconds: T > 0.
        default_uplink: B_n of a client whose device is not known, in bytes per second; None: refuse to compress.

    Raises:
        ConfigurationError: a setting is not above 0.
    """

    def __init__(self, seconds: float, default_uplink: float | None = None) -> None:
        for name, value in (("seconds", seconds), ("default_uplink", default_uplink)):
            if value is not None and not 0 < value < math.inf:
                raise ConfigurationError(f"Expected a finite {name} above 0 but got {value}")
        self.seconds, self.default_uplink = seconds, default_uplink

    def apply(self, p_D: Tensor, context: Context) -> SparseUpdate:
        """Return the largest k_n entries; see :meth:`Compressor.apply`.

        Raises:
            ConfigurationError: the uplink is not known.
        """
        return top_count(p_D, self.count(p_D.numel(), p_D.element_size(), context))

    def fused(  # noqa: D102
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> Parts | None:
        count = self.count(delta_D.numel(), delta_D.element_size(), context)
        return split_largest(delta_D, residual_D, count, out)

    def count(self, size: int, itemsize: int, context: Context) -> int:
        """Return k_n.

        Args:
            size: D_n.
            itemsize: bytes of one value of the vector.
            context: of the vector.

        Raises:
            ConfigurationError: the uplink is not known.
        """
        uplink = context.uplink or self.default_uplink
        if uplink is None:
            raise ConfigurationError(
                "Expected client devices with an uplink, or default_uplink, for AdaptiveDensity but got neither"
            )
        return affordable_count(size, self.seconds * uplink, context.itemsize or itemsize)
