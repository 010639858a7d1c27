"""The mask of the weights whose absolute values reach a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.parts.mask_rule import MaskRule
from hetfl.pruning.densities import density_of, largest


class ThresholdMask(MaskRule):
    r"""Prunes the entries of the global model below a threshold: :math:`|\theta_i| \ge \tau_t` is kept.

    After t rounds, at the end of those in which pruning is due, the mask loses the entries below :math:`\tau_t = \tau
    \min(1, t / T)`. Pruned entries are zero and never return. At least one entry of every weight stays. The density
    follows from the weights, and begins with 1; that of the level only says that its parts have a mask.

    Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015 (arXiv
    1506.02626), section 3, where a threshold depends on the standard deviation of a layer.

    Args:
        threshold: :math:`\tau`.
        after: number of rounds before the first pruning.
        every: rounds between two prunings; 0: prune once.
        until: number of rounds T after which the threshold is :math:`\tau`; None: it is :math:`\tau` from the first
            pruning on.

    Raises:
        ConfigurationError: a number is out of its range, or a threshold that rises is used once.
    """

    def __init__(self, threshold: float, after: int = 1, every: int = 0, until: int | None = None) -> None:
        if not 0.0 < threshold < float("inf") or after < 1 or every < 0 or (until is not None and until <= after):
            raise ConfigurationError(
                "Expected a finite threshold above 0, after of at least 1, every of at least 0 and until above after "
                f"but got {threshold}, {after}, {every}, {until}"
            )
        if until is not None and not every:
            raise ConfigurationError(f"Expected every above 0 with until, for a threshold that rises, but got {every}")
        self.threshold, self.after, self.every, self.until = threshold, after, every, until

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        ones = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in self.weights.items()}
        return {self.sparse[0]: ones}

    def due(self, done: int) -> bool:
        """Return whether entries are pruned after a number of rounds."""
        return done == self.after or (self.every > 0 and done > self.after and (done - self.after) % self.every == 0)

    def end_round(self, round: int) -> None:  # noqa: D102
        held, done = self.mask, round + 1
        if self.due(done):
            threshold = self.threshold * (1.0 if self.until is None else min(1.0, done / self.until))
            held = {name: reached(weight, held[name], threshold) for name, weight in self.weights.items()}
            self.hold({self.sparse[0]: held})
        self.clear_pruned()

    def columns(self) -> dict[str, float]:
        """Return the density of the mask over all weights."""
        return {"parts/density": density_of(self.mask)}


def reached(weight: Tensor, mask: Tensor, threshold: float) -> Tensor:
    """Return which held entries reach a threshold; if there are none, the largest held entry.

    Args:
        weight: of any shape.
        mask: the held entries, bool, of its shape, on the CPU.
        threshold: the least absolute value.
    """
    sizes = weight.abs().cpu().masked_fill(~mask, -1.0)
    kept = sizes >= threshold
    return kept if bool(kept.any()) else largest(sizes, 1)
