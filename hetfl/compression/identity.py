"""No compression."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.base import Compressor, require_finite
from hetfl.types import Layout
from hetfl.updates import DenseUpdate


class Identity(Compressor):
    """Send everything: u = p."""

    def compress(  # noqa: D102
        self,
        p_D: Tensor,
        *,
        lr: float,
        layout: Layout | None = None,
        client: int | None = None,
        generator: torch.Generator | None = None,
    ) -> DenseUpdate:
        require_finite(p_D, layout, client)
        return DenseUpdate(p_D)
