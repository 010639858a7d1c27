"""Send a fixed share of the entries, the largest."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.compression.amounts import require_density
from hetfl.compression.base import Compressor, Context, positions_of
from hetfl.compression.scope import Scope, per_tensor
from hetfl.compression.threshold_pass import Parts, split_fused
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.updates import SparseUpdate

By = Literal["delta", "weight"]
"""By what entries are chosen: the magnitude of what a client would send, or of its weight after training."""

SAMPLE = 1 << 16
"""Entries from which a threshold is estimated."""


def top_k(p_D: Tensor, density: float, score_D: Tensor | None = None) -> SparseUpdate:
    """Return the k = max(1, ⌊density · D⌋) entries of largest magnitude; of equal ones those of lowest index.

    Args:
        p_D: shape (D,).
        density: share of the entries, in (0, 1].
        score_D: as in :func:`top_count`.
    """
    return top_count(p_D, count_of(density, p_D.numel()), score_D)


def top_count(p_D: Tensor, count: int, score_D: Tensor | None = None) -> SparseUpdate:
    """Return the ``count`` entries of largest magnitude, of equal ones those of lowest index.

    Args:
        p_D: shape (D,).
        count: from 0 to D.
        score_D: numbers by whose magnitude entries are chosen, shape (D,); None: the entries themselves.
    """
    if not count:
        return SparseUpdate(p_D[:0].clone(), torch.empty(0, dtype=torch.int64, device=p_D.device), p_D.numel())
    indices = positions_of(largest((p_D if score_D is None else score_D).abs(), count))
    return SparseUpdate(p_D[indices], indices, p_D.numel())


def count_of(density: float, size: int) -> int:
    """Return k = max(1, ⌊density · D⌋), and 0 for no entries."""
    return min(size, max(1, math.floor(density * size)))


def largest(magnitude_D: Tensor, count: int) -> Tensor:
    """Return which magnitudes are the ``count`` largest, of equal ones those of lowest index: bool, shape (D,)."""
    least = magnitude_D.topk(count, sorted=False).values.min()
    keep_D = magnitude_D > least
    # torch.topk does not say which of equal entries it takes.
    ties = (magnitude_D == least).nonzero().squeeze(1)
    keep_D[ties[: count - int(keep_D.sum())]] = True
    return keep_D


def estimated_threshold(delta_D: Tensor, residual_D: Tensor | None, count: int) -> float:
    """Return a threshold that a few more than ``count`` entries of Δ + e reach, most likely, from an even sample.

    Of m sampled entries about m k/D belong to the largest k, give or take the square root; four of those are let in.
    """
    stride = max(1, delta_D.numel() // SAMPLE)
    sample = delta_D[::stride] if residual_D is None else delta_D[::stride] + residual_D[::stride]
    share = sample.numel() * count / delta_D.numel()
    rank = min(sample.numel(), math.ceil(share + 4 * math.sqrt(share) + 1))
    return float(sample.abs().topk(rank, sorted=False).values.min())


def split_largest(delta_D: Tensor, residual_D: Tensor | None, count: int, out: Tensor | None) -> Parts | None:
    """Divide Δ + e into the k largest entries and the rest by the fused pass; None if the estimate was too high.

    Args:
        delta_D: Δ, shape (D,), float32 on the CPU.
        residual_D: e, shape (D,); None: 0.
        count: k, from 1 to D.
        out: as in :func:`hetfl.compression.threshold_pass.split_fused`.
    """
    reached = split_fused(delta_D, residual_D, estimated_threshold(delta_D, residual_D, count), out)
    if not reached.finite:
        return reached
    if reached.indices.numel() < count:
        return None
    return kept_largest(reached, count)


def kept_largest(parts: Parts, count: int) -> Parts:
    """Return a division whose entries are the ``count`` largest of those that reached the threshold.

    Args:
        parts: with more entries than that; the memory of what is left is used.
        count: from 0.
    """
    keep = largest(parts.values.abs(), count) if count else torch.zeros_like(parts.values, dtype=torch.bool)
    back = ~keep
    parts.left_D[parts.indices[back]] = parts.values[back]
    return Parts(parts.indices[keep], parts.values[keep], parts.left_D, True)


class TopK(Compressor):
    r"""Send the k entries of largest magnitude, k = max(1, ⌊density · D⌋).

    A contraction: ‖C(p) − p‖² ≤ (1 − k/D) ‖p‖² (Stich et al., Sparsified SGD with Memory, NeurIPS 2018, arXiv
    1809.07599).

    With ``schedule: lr`` the density of round t is density · γ_t / γ̄, at most 1, where γ̄ is the mean of the clients'
    learning rates over all rounds of the run: a delta is a sum of steps of size γ_t, and bytes go where steps are
    large.

    With ``by: weight`` the entries are those of largest :math:`|\theta_i + p_i|`, with θ the values that the client
    began with: the weights that would be the client's if all was sent. What is sent of them is still p. This is *Diff
    on Top-K-Weights* of ZeroFL (Qiu, Fernandez-Marques, Gusmao, Gao, Parcollet, Lane, ICLR 2022), and no contraction:
    error feedback loses nothing, but an entry of a small weight may wait for ever.

    Args:
        density: share of the entries, in (0, 1]; with a schedule, its mean over the rounds.
        schedule: ``lr``: in proportion to the learning rate; null: the same in all rounds.
        scope: choose over the whole vector (``global``), or the same share of every tensor (``layer``).
        by: ``delta``: magnitude of p; ``weight``: magnitude of the trained weight.

    Raises:
        ConfigurationError: ``density`` is outside (0, 1], or ``by`` is unknown.
    """

    def __init__(
        self, density: float, *, schedule: Literal["lr"] | None = None, scope: Scope = "global", by: By = "delta"
    ) -> None:
        require_density(density)
        self.density, self.schedule, self.scope, self.by = density, schedule, scope, choice("by", by, By)
        self._mean_lr: float | None = None  # over the rounds of the run

    def setup(self, facts: Facts) -> None:
        """Learn the mean learning rate; see :meth:`Compressor.setup`.

        Raises:
            ConfigurationError: it is 0.
        """
        self._mean_lr = None
        if self.schedule is None or not facts.lrs:
            return
        self._mean_lr = math.fsum(facts.lrs) / len(facts.lrs)
        if self._mean_lr <= 0:
            raise ConfigurationError("Expected a learning rate above 0 in some round for schedule: lr but got none")

    def density_at(self, lr: float) -> float:
        """Return the density at a learning rate.

        Raises:
            ConfigurationError: it follows the schedule of a run, and there is no run.
        """
        if self.schedule is None:
            return self.density
        if self._mean_lr is None:
            raise ConfigurationError("Expected the schedule of a run for TopK(schedule: lr) but got a vector without")
        return min(1.0, self.density * lr / self._mean_lr)

    def apply(self, p_D: Tensor, context: Context) -> SparseUpdate:
        """Return the k entries; see :meth:`Compressor.apply`.

        Raises:
            ConfigurationError: entries are chosen by weight, and the client's first values are not known.
        """
        density, score_D = self.density_at(context.lr), self._weights(p_D, context)
        if self.scope == "global" or context.layout is None:
            return top_k(p_D, density, score_D)
        if score_D is None:
            return per_tensor(p_D, context.layout, lambda name, part: top_k(part, density))
        scores = dict(zip(context.layout.shapes, score_D.split(context.layout.sizes), strict=True))
        return per_tensor(p_D, context.layout, lambda name, part: top_k(part, density, scores[name]))

    def _weights(self, p_D: Tensor, context: Context) -> Tensor | None:
        """Return θ + p, shape (D,); None: entries are chosen by p."""
        if self.by == "delta":
            return None
        if context.start is None:
            raise ConfigurationError("Expected the values that a client began with for TopK(by: weight) but got none")
        return context.start() + p_D

    def fused(  # noqa: D102
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> Parts | None:
        if self.by == "delta" and (self.scope == "global" or context.layout is None):
            return split_largest(delta_D, residual_D, count_of(self.density_at(context.lr), delta_D.numel()), out)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the mean learning rate, which clients on other machines need."""
        return {} if self.schedule is None else {"mean_lr": self._mean_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back the mean learning rate; a run that goes on has one of its own, as it may be longer."""
        if self._mean_lr is None and self.schedule is not None:
            self._mean_lr = state["mean_lr"]
