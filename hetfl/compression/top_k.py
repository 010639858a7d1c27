"""Send a fixed share of the entries, the largest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hetfl.compression.base import Compressor, require_density, require_finite
from hetfl.types import Layout, SparseUpdate


def top_k(p_D: Tensor, density: float) -> SparseUpdate:
    """Return the k = max(1, ⌊density · D⌋) entries of largest magnitude; of equal ones those of lowest index.

    Args:
        p_D: shape (D,).
        density: share of the entries, in (0, 1].
    """
    count = min(p_D.numel(), max(1, math.floor(density * p_D.numel())))
    if not count:
        return SparseUpdate(0, torch.empty(0, dtype=torch.int64, device=p_D.device), p_D.clone())
    magnitude_D = p_D.abs()
    least = magnitude_D.topk(count, sorted=False).values.min()
    keep_D = magnitude_D > least
    # torch.topk does not say which of equal entries it takes.
    ties = (magnitude_D == least).nonzero().squeeze(1)
    keep_D[ties[: count - int(keep_D.sum())]] = True
    indices = keep_D.nonzero().squeeze(1)
    return SparseUpdate(p_D.numel(), indices, p_D[indices])


class TopK(Compressor):
    """Send the k entries of largest magnitude over the whole vector, k = max(1, ⌊density · D⌋).

    A contraction: ‖C(p) − p‖² ≤ (1 − k/D) ‖p‖² (Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv
    1809.07599).

    Args:
        density: share of the entries, in (0, 1].

    Raises:
        ConfigurationError: ``density`` is outside (0, 1].
    """

    def __init__(self, density: float) -> None:
        require_density(density)
        self.density = density

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"density": self.density}

    def compress(  # noqa: D102
        self,
        p_D: Tensor,
        *,
        lr: float,
        layout: Layout | None = None,
        client: int | None = None,
        generator: torch.Generator | None = None,
    ) -> SparseUpdate:
        require_finite(p_D, layout, client)
        return top_k(p_D, self.density)
