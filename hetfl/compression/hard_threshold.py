"""Send every entry whose magnitude reaches a fixed threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hetfl.compression.base import Compressor, require_density, require_finite
from hetfl.compression.top_k import top_k
from hetfl.errors import ConfigurationError
from hetfl.types import Layout, SparseUpdate, Update


def hard_threshold(p_D: Tensor, threshold: float) -> SparseUpdate:
    """Return the entries with |p_i| ≥ λ and p_i ≠ 0, in O(D).

    Args:
        p_D: shape (D,).
        threshold: λ ≥ 0, compared in the dtype of ``p_D``.
    """
    indices = ((p_D.abs() >= threshold) & (p_D != 0)).nonzero().squeeze(1)
    return SparseUpdate(p_D.numel(), indices, p_D[indices])


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

    Raises:
        ConfigurationError: not exactly one of ``threshold`` and ``density`` is given, or it is out of range.
    """

    def __init__(self, threshold: float | None = None, density: float | None = None) -> None:
        if (threshold is None) == (density is None):
            raise ConfigurationError(
                f"Expected exactly one of threshold and density but got threshold={threshold}, density={density}"
            )
        if threshold is not None and not 0 <= threshold < math.inf:
            raise ConfigurationError(f"Expected a finite threshold of at least 0 but got {threshold}")
        if density is not None:
            require_density(density)
        self.density = density
        self._given = threshold
        self._calibrated: float | None = None
        self._reports: list[tuple[float, int]] = []  # k-th magnitude, length D

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"threshold": self._given, "density": self.density}

    @property
    def initial_threshold(self) -> float | None:
        """λ_0: given or calibrated; None as long as it is neither."""
        return self._calibrated if self._given is None else self._given

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        return self.initial_threshold

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
        threshold = self.threshold(lr)
        if threshold is not None:
            return hard_threshold(p_D, threshold)
        assert self.density is not None  # the constructor took exactly one of the two
        return top_k(p_D, self.density)

    def observe(self, update: Update) -> None:  # noqa: D102
        if self.initial_threshold is None and isinstance(update, SparseUpdate) and update.num_sent:
            self._reports.append((float(update.values.abs().min()), update.size))

    def end_round(self) -> None:  # noqa: D102
        if self._reports:
            magnitudes, sizes = zip(*self._reports, strict=True)
            self._calibrated = weighted_median(magnitudes, sizes) or None
            self._reports = []

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"calibrated": self._calibrated, "reports": list(self._reports)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._calibrated = state["calibrated"]
        self._reports = [(magnitude, size) for magnitude, size in state["reports"]]
