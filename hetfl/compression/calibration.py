"""How a threshold is found from the first round's updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hetfl.compression.scope import Scope
from hetfl.layout import Layout
from hetfl.updates import SparseUpdate, Update

WHOLE = ""
"""In the place of a tensor's name: the whole vector."""

PILE = 0.3
"""φ: entries sent, times λ, over ‖Δ‖₁, once residuals have piled up below λ. Measured: 0.25 to 0.4 at up to 1 %."""


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


def pile_factor(delta_norm: float, kept: Sequence[tuple[int, float]]) -> float:
    r"""Return how many times the k-th largest magnitude κ of a first delta λ is: it makes room for the residuals' pile.

    With error feedback, entries pile up below λ until each round sends :math:`n = φ ‖Δ‖_1 / λ` of them. For n = k this
    is :math:`λ = φ ‖Δ‖_1 / k`, well above κ. Clients that take part seldom have small piles, for which κ is right; λ
    is the geometric mean of the two, :math:`\sqrt{κ φ ‖Δ‖_1 / k}`, and at least κ. Densities were then within a factor
    of 2.3 of what was asked for (``docs/results.md``); a budget meets a density.

    Args:
        delta_norm: ‖Δ‖₁.
        kept: k and the k-th largest magnitude, above 0, of the whole vector or of every tensor.

    >>> pile_factor(600.0, [(10, 2.0)]), pile_factor(1.0, [(10, 2.0)])
    (3.0, 1.0)
    """
    return math.sqrt(max(1.0, PILE * delta_norm / math.fsum(count * least for count, least in kept)))


class Calibration:
    """λ_0 from the first round with accepted updates, for the whole vector or for every tensor.

    Until then each update is the top k of its vector. The k-th magnitude of a client is the smallest in its update. λ_0
    is their median, weighted by the updates' lengths, times the median of :func:`pile_factor`. A round without an
    accepted update, or with a median of 0, calibrates nothing, and the next round goes on.

    Args:
        scope: one λ_0 for the whole vector (``global``) or one per tensor (``layer``).
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.initial: dict[str, float] = {}  # by tensor: λ_0
        self.factor: float | None = None  # of the pile
        self._reports: dict[str, list[tuple[float, int]]] = {}  # by tensor: k-th magnitude, length
        self._factors: list[tuple[float, int]] = []  # of a client's pile, with the length of its vector

    def measured(self, update: Update, layout: Layout | None) -> dict[str, tuple[float, int, int]]:
        """Return, by tensor without λ_0, the smallest magnitude that an update sends of it, k, and its length."""
        if WHOLE in self.initial or not isinstance(update, SparseUpdate):
            return {}
        magnitudes = update.values.abs()
        if self.scope == "global" or layout is None:
            parts = {WHOLE: (magnitudes, update.size)}
        else:
            split = magnitudes.split(update.num_sent_per_tensor(layout).tolist())
            parts = dict(zip(layout.shapes, zip(split, layout.sizes, strict=True), strict=True))
        return {
            name: (float(sent.min()), sent.numel(), size)
            for name, (sent, size) in parts.items()
            if name not in self.initial and sent.numel()
        }

    def observe(self, update: Update, layout: Layout | None, delta_norm: float) -> None:
        """Learn from an accepted update.

        Args:
            update: what the server decoded.
            layout: of its vector.
            delta_norm: ‖Δ‖₁ as the client reports it; 0: not known.
        """
        measured = self.measured(update, layout)
        for name, (least, _, size) in measured.items():
            self._reports.setdefault(name, []).append((least, size))
        kept = [(count, least) for least, count, _ in measured.values() if least > 0]
        if kept and self.factor is None:
            self._factors.append((pile_factor(delta_norm, kept), update.size))

    def end_round(self, law: float) -> None:
        """Take the medians of the round.

        Args:
            law: λ_t / λ_0 of the round; if it is 0, the round calibrates nothing.
        """
        if self._factors and law > 0:
            self.factor = weighted_median(*zip(*self._factors, strict=True))
        for name, reports in self._reports.items():
            median = weighted_median(*zip(*reports, strict=True))
            if median > 0 and law > 0:
                self.initial[name] = median * (self.factor or 1.0) / law
        self._reports, self._factors = {}, []

    def state_dict(self) -> dict[str, Any]:
        """Return the state in plain types."""
        reports = {name: list(each) for name, each in self._reports.items()}
        return {
            "initial": dict(self.initial),
            "factor": self.factor,
            "reports": reports,
            "factors": list(self._factors),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.initial, self.factor = dict(state["initial"]), state["factor"]
        self._reports = {name: [tuple(each) for each in reports] for name, reports in state["reports"].items()}
        self._factors = [tuple(each) for each in state["factors"]]
