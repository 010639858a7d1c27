"""Send every entry whose magnitude reaches a threshold."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from hetfl.compression.amounts import require_one_amount
from hetfl.compression.base import Compressor, Context, positions_of
from hetfl.compression.budget import BudgetControl, Limit
from hetfl.compression.calibration import WHOLE, Calibration
from hetfl.compression.scope import Scope, per_tensor
from hetfl.compression.threshold_pass import Parts, split_fused
from hetfl.compression.top_k import kept_largest, top_count, top_k
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.piece import Facts
from hetfl.types import Range, Report
from hetfl.updates import SparseUpdate, Update

Weighting = Literal["none", "samples"]
"""``none``: one threshold for all clients; ``samples``: clients with more samples have a lower one."""

DELTA_NORM = "delta_norm"
"""Name of the extra of a report: ‖Δ‖₁."""


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


class HardThreshold(Compressor):
    """Send every entry with |p_i| ≥ λ and p_i ≠ 0, with λ the same for all clients and rounds.

    The hard threshold with error feedback of Sahu et al., Rethinking gradient sparsification as total error
    minimization, NeurIPS 2021, arXiv 2108.00951. There λ acts on gradients; here it acts on deltas, which contain the
    learning rate.

    λ comes from one of three settings:

    - ``threshold``: λ itself.
    - ``density``: λ is calibrated in the first round with accepted updates (:class:`~.calibration.Calibration`), so
      that later rounds send roughly this share of the entries, within a factor of about two, as long as the deltas stay
      as large. Until then an update is the top k of its vector.
    - ``budget``: λ is steered during the run (:class:`~.budget.BudgetControl`), so that all uploads together take the
      given bytes, or this mean share of the entries. λ then moves slowly.

    Args:
        threshold: λ, at least 0.
        density: share of entries that the calibration aims at, in (0, 1].
        budget: bytes of all accepted updates of the run, above 1; or a mean density over the run, in (0, 1].
        scope: calibrate one λ (``global``), or one for every tensor (``layer``); a budget has one.
        weighting: ``samples``: a client with n_k samples compares with λ (n̄ / n_k)^(2/3), n̄ the mean over all clients,
            for means weighted by samples. After DAGC-A: thresholds proportional to p_k^(−2/3).

    Raises:
        ConfigurationError: not exactly one of ``threshold``, ``density`` and ``budget`` is given, or one is out of
            range.
    """

    def __init__(
        self,
        threshold: float | None = None,
        density: float | None = None,
        *,
        budget: float | None = None,
        scope: Scope = "global",
        weighting: Weighting = "none",
    ) -> None:
        require_one_amount(threshold=threshold, density=density, budget=budget)
        if budget is not None and scope != "global":
            raise ConfigurationError(f"Expected scope: global with a budget but got {scope}")
        self.density, self.budget, self.scope, self.weighting = density, budget, scope, weighting
        self._given = threshold
        self._calibration = None if density is None else Calibration(scope)
        self._control = None if budget is None else BudgetControl(budget)
        self._lr: float | None = None  # of the round

    @property
    def planned_density(self) -> float | None:
        """The density of the calibration, or a budget that is a mean density; None: neither is given."""
        return self.budget if self._control is not None and self._control.by_density else self.density

    def settings(self) -> dict[str, object]:  # noqa: D102
        return super().settings() | {"threshold": self._given}

    def scale(self, lr: float) -> float:
        """Return λ_t / λ_0 at a learning rate γ_t: 1."""
        return 1.0

    def setup(self, facts: Facts) -> None:  # noqa: D102
        if self._control is None or not facts.lrs:
            return
        self._control.plan(facts.lrs, [self.scale(lr) for lr in facts.lrs], facts.cohort)

    def extras(self) -> dict[str, Range]:
        """Return the range of ‖Δ‖₁, while λ depends on it."""
        if not self._reads_norms:
            return {}
        return {DELTA_NORM: Range(0.0, torch.finfo(torch.float32).max, "for the 1-norm of a delta")}

    def report(self, delta_D: Tensor) -> dict[str, float]:  # noqa: D102
        return {DELTA_NORM: _norm(delta_D)} if self._reads_norms else {}

    @property
    def _reads_norms(self) -> bool:
        """Whether ‖Δ‖₁ is learnt from: always under a budget, and until a calibration has its factor."""
        return self._control is not None or (self._calibration is not None and self._calibration.factor is None)

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        if self._control is not None:
            return self._control.threshold
        initial = self._given if self._calibration is None else self._calibration.initial.get(WHOLE)
        return None if initial is None else initial * self.scale(lr)

    def apply(self, p_D: Tensor, context: Context) -> SparseUpdate:  # noqa: D102
        self.meet(context.lr)
        if self._control is not None:
            limit = self._limit(self._control, p_D, context)
            update = hard_threshold(p_D, limit.threshold)
            return update if update.num_sent <= limit.most else top_count(p_D, limit.most)
        threshold = self.threshold(context.lr)
        if threshold is not None:
            return hard_threshold(p_D, threshold / self._weight(context))
        if self.scope == "global" or context.layout is None:
            return self._chosen(WHOLE, p_D, context)
        return per_tensor(p_D, context.layout, lambda name, part: self._chosen(name, part, context))

    def fused(  # noqa: D102
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> Parts | None:
        self.meet(context.lr)
        if self._control is None:
            threshold = self.threshold(context.lr)
            if threshold is None:
                return None
            return split_fused(delta_D, residual_D, threshold / self._weight(context), out)
        limit = self._limit(self._control, delta_D, context)
        parts = split_fused(delta_D, residual_D, limit.threshold, out)
        return kept_largest(parts, limit.most) if parts.finite and parts.indices.numel() > limit.most else parts

    def _limit(self, control: BudgetControl, delta_D: Tensor, context: Context) -> Limit:
        """Return what a client may send of its vector, which has as many entries as its delta."""
        norm = context.reported[DELTA_NORM] if DELTA_NORM in context.reported else _norm(delta_D)
        threshold, most = control.limit(delta_D.numel(), context.itemsize or delta_D.element_size(), norm)
        return Limit(threshold / self._weight(context), most)

    def _weight(self, context: Context) -> float:
        """Return (n_k / n̄)^(2/3), by which a client's magnitudes are multiplied before they are compared with λ."""
        return 1.0 if self.weighting == "none" else float(context.relative_samples ** (2 / 3))

    def _chosen(self, name: str, part: Tensor, context: Context) -> SparseUpdate:
        """Return what reaches a tensor's λ; while it has none, its top k."""
        assert self._calibration is not None
        assert self.density is not None
        if name in self._calibration.initial:
            threshold = self._calibration.initial[name] * self.scale(context.lr)
            return hard_threshold(part, threshold / self._weight(context))
        return top_k(part, self.density)

    def needs_values(self, update: Update, layout: Layout | None) -> bool:
        """Return whether a λ is calibrated by the update."""
        if self._calibration is None:
            return False
        return any(smallest > 0 for smallest, *_ in self._calibration.measured(update, layout).values())

    def meet(self, lr: float) -> None:
        """Learn the learning rate of a round, or of a vector that is compressed outside of a run."""
        self._lr = lr

    def begin_round(self, lr: float) -> None:  # noqa: D102
        self.meet(lr)
        if self._control is not None:
            self._control.begin_round()

    def observe(self, update: Update, layout: Layout | None = None, report: Report | None = None) -> None:  # noqa: D102
        norm = 0.0 if report is None else report.extras.get(DELTA_NORM, 0.0)
        if self._calibration is not None:
            self._calibration.observe(update, layout, norm)
        if self._control is not None and report is not None:
            self._control.observe(update, report.up_bytes, norm)

    def end_round(self) -> None:  # noqa: D102
        if self._calibration is not None:
            self._calibration.end_round(0.0 if self._lr is None else self.scale(self._lr))
        if self._control is not None:
            self._control.end_round()

    def columns(self) -> dict[str, float]:  # noqa: D102
        return {} if self._control is None else self._control.columns()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        source = self._calibration or self._control
        return {} if source is None else source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        source = self._calibration or self._control
        if source is not None:
            source.load_state_dict(state)


def _norm(delta_D: Tensor) -> float:
    """Return ‖Δ‖₁, added up in float64."""
    return float(torch.linalg.vector_norm(delta_D, 1, dtype=torch.float64))
