"""Send entries that chance picks."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.compression.amounts import require_density
from hetfl.compression.base import Compressor, Context
from hetfl.compression.scope import Scope
from hetfl.compression.top_k import count_of
from hetfl.updates import SeededUpdate


class RandomK(Compressor):
    """Send k entries drawn without replacement, k = max(1, ⌊density · D⌋); a seed of 8 bytes stands for their indices.

    Unscaled, a contraction in the mean: E‖C(p) − p‖² = (1 − k/D) ‖p‖², for error feedback. Scaled by D/k, unbiased:
    E C(p) = p; an operator that expands, not for error feedback. Stich et al., Sparsified SGD with Memory, NeurIPS
    2018, arXiv 1809.07599; random masks: Konečný et al., arXiv 1610.05492.

    Args:
        density: share of the entries, in (0, 1].
        scaled: multiply by D/k.
        scope: draw from the whole vector (``global``) or the same share of every tensor (``layer``).

    Raises:
        ConfigurationError: ``density`` is outside (0, 1].
    """

    def __init__(self, density: float, scaled: bool = False, scope: Scope = "global") -> None:
        require_density(density)
        self.density, self.scaled, self.scope = density, scaled, scope

    @property
    def expands(self) -> bool:
        """Whether ‖C(p) − p‖ may exceed ‖p‖."""
        return self.scaled

    def apply(self, p_D: Tensor, context: Context) -> SeededUpdate:  # noqa: D102
        sizes = (p_D.numel(),) if self.scope == "global" or context.layout is None else context.layout.sizes
        counts = tuple(count_of(self.density, size) for size in sizes)
        seed = int(torch.randint(2**63 - 1, (), generator=context.generator))
        indices = SeededUpdate.positions(seed, sizes, counts).to(p_D.device)
        values = p_D[indices]
        if self.scaled:
            factors = torch.tensor([size / count if count else 1.0 for size, count in zip(sizes, counts, strict=True)])
            values = values * factors.repeat_interleave(torch.tensor(counts)).to(values)
        return SeededUpdate(values, indices, p_D.numel(), seed, counts)
