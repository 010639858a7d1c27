"""Send every entry whose magnitude reaches a fixed threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hetfl.compression.base import Compressor, Context, positions_of, require_threshold_or_density
from hetfl.compression.scope import Scope, per_tensor
from hetfl.compression.threshold_pass import Parts, split_fused
from hetfl.compression.top_k import top_k
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate, Update


def hard_threshold(p_D: Tensor, threshold: float) -> SparseUpdate:
    """Return the entries with |p_i| ≥ λ and p_i ≠ 0, in O(D).

    Args:
        p_D: shape (D,).
        threshold: λ ≥ 0, compared in the dtype of ``p_D``.
    """
    reached_D = p_D.abs() >= threshold
    if threshold < torch.finfo(p_D.dtype).tiny:  # it may be 0 in this dtype, which zeros reach
        reached_D &= p_D != 0
    indices = positions_of(reached_D)
    return SparseUpdate(p_D[indices], indices, p_D.numel())


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the smallest value at which the weights, in the order of the values, sum to half of their total.

    It minimises Σ_i w_i |x_i − m|, and does not depend on the order of its arguments' pairs.

    >>> weighted_median([3.0, 1.0, 2.0], [1, 1, 3])
    2.0
    """
    half = math.fsum(weights) / 2
    reached = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        reached += weight
        if reached >= half:
            return value
    raise ValueError("Expected at least one value but got none")


WHOLE = ""
"""In the place of a tensor's name: all of the vector."""


class HardThreshold(Compressor):
    """Send every entry with |p_i| ≥ λ and p_i ≠ 0, λ the same for all clients and rounds.

    The hard threshold with error feedback of Sahu et al., Rethinking gradient sparsification as total error
    minimization, NeurIPS 2021, arXiv 2108.00951. There λ acts on gradients; here, on deltas, which contain the learning
    rate.

    λ is given, or calibrated: while it is unset, updates are the top k of ``density``; the smallest magnitude in an
    accepted update is that client's k-th, so reporting it costs no byte; at the end of the round λ is their median,
    weighted by the updates' lengths D, and stays. A round without an accepted update, or with a median of 0, calibrates
    nothing, and the next round goes on.

    Args:
        threshold: λ, at least 0.
        density: share of entries that the calibration aims at, in (0, 1].
        scope: calibrate one λ (``global``), or one for every tensor (``layer``).

    Raises:
        ConfigurationError: not exactly one of ``threshold`` and ``density`` is given, or it is out of range.
    """

    def __init__(self, threshold: float | None = None, density: float | None = None, scope: Scope = "global") -> None:
        require_threshold_or_density(threshold, density)
        self.density, self.scope = density, scope
        self._given = threshold
        self._calibrated: dict[str, float] = {}  # by tensor
        self._reports: dict[str, list[tuple[float, int]]] = {}  # by tensor: k-th magnitude, length D

    def settings(self) -> dict[str, object]:  # noqa: D102
        return super().settings() | {"threshold": self._given}

    def scale(self, lr: float, name: str = WHOLE) -> float:
        """Return λ_t / λ_0 of a tensor, or of all of the vector, at a learning rate: 1."""
        return 1.0

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        initial = self._calibrated.get(WHOLE) if self._given is None else self._given
        return None if initial is None else initial * self.scale(lr)

    def in_force(self, lr: float) -> float | None:
        """Return λ for a vector that is compressed now; None while it is to be calibrated, or of tensors apart."""
        return self.threshold(lr)

    def apply(self, p_D: Tensor, context: Context) -> SparseUpdate:  # noqa: D102
        threshold = self.in_force(context.lr)
        if threshold is not None:
            return hard_threshold(p_D, threshold)
        if self.scope == "global" or context.layout is None:
            return self._chosen(WHOLE, p_D, context.lr)
        return per_tensor(p_D, context.layout, lambda name, part: self._chosen(name, part, context.lr))

    def fused(  # noqa: D102
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> Parts | None:
        threshold = self.in_force(context.lr)
        return None if threshold is None else split_fused(delta_D, residual_D, threshold, out)

    def _chosen(self, name: str, part: Tensor, lr: float) -> SparseUpdate:
        """Return what reaches a tensor's λ; while it has none, its top k."""
        if name in self._calibrated:
            return hard_threshold(part, self._calibrated[name] * self.scale(lr, name))
        assert self.density is not None  # the constructor took exactly one of the two
        return top_k(part, self.density)

    def needs_values(self, update: Update, layout: Layout | None) -> bool:
        """Return whether a λ is calibrated by the update."""
        return any(smallest > 0 for smallest, _ in self._calibrating(update, layout).values())

    def observe(self, update: Update, layout: Layout | None = None) -> None:  # noqa: D102
        for name, report in self._calibrating(update, layout).items():
            self._reports.setdefault(name, []).append(report)

    def _calibrating(self, update: Update, layout: Layout | None) -> dict[str, tuple[float, int]]:
        """Return, by tensor that has no λ yet, the smallest magnitude that an update sends of it and its length."""
        if self._given is not None or WHOLE in self._calibrated or not isinstance(update, SparseUpdate):
            return {}
        magnitudes = update.values.abs()
        if self.scope == "global" or layout is None:
            parts = {WHOLE: (magnitudes, update.size)}
        else:
            split = magnitudes.split(update.num_sent_per_tensor(layout).tolist())
            parts = dict(zip(layout.shapes, zip(split, layout.sizes, strict=True), strict=True))
        return {
            name: (float(sent.min()), size)
            for name, (sent, size) in parts.items()
            if name not in self._calibrated and sent.numel()
        }

    def end_round(self) -> None:  # noqa: D102
        for name, reports in self._reports.items():
            median = weighted_median(*zip(*reports, strict=True))
            if median > 0:
                self._calibrated[name] = median
        self._reports = {}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "calibrated": dict(self._calibrated),
            "reports": {name: list(reports) for name, reports in self._reports.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._calibrated = dict(state["calibrated"])
        self._reports = {name: [tuple(each) for each in reports] for name, reports in state["reports"].items()}
