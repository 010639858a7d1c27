"""No compression."""

from __future__ import annotations

from torch import Tensor

from hetfl.compression.base import Compressor, Context
from hetfl.updates import DenseUpdate


class Identity(Compressor):
    """Send everything: u = p."""

    sparse = False

    def apply(self, p_D: Tensor, context: Context) -> DenseUpdate:  # noqa: D102
        return DenseUpdate(p_D)
