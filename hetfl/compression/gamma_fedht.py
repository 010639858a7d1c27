"""A hard threshold that follows the learning rate."""

from __future__ import annotations

import math
from typing import Any

from hetfl.compression.hard_threshold import WHOLE, HardThreshold
from hetfl.compression.scope import Scope
from hetfl.errors import ConfigurationError


def stepsize_aware_threshold(initial: float, lr: float, reference_lr: float, alpha: float) -> float:
    """Return λ_t = λ_0 · (γ_t / γ_0)^α; λ_0 itself if α = 0.

    Args:
        initial: λ_0.
        lr: γ_t.
        reference_lr: γ_0 > 0.
        alpha: α ≥ 0.

    Raises:
        ConfigurationError: λ_t is beyond every number.
    """
    try:
        return initial if alpha == 0 else initial * (lr / reference_lr) ** alpha
    except OverflowError as error:
        raise ConfigurationError(
            f"Expected alpha and reference_lr that give a finite threshold but got ({lr} / {reference_lr}) ** {alpha}"
        ) from error


class GammaFedHT(HardThreshold):
    """Stepsize-aware hard threshold: send |p_i| ≥ λ_t and p_i ≠ 0, with λ_t = λ_0 · (γ_t / γ_0)^α.

    A delta is a sum of steps of size γ_t, so it shrinks with γ_t: under a fixed threshold (α = 0,
    :class:`HardThreshold`) traffic dies as the learning rate decays. At α = 1 the threshold shrinks as the deltas do.
    With error feedback even that density is not constant: what was kept back at larger steps is released as λ_t falls,
    so α trades traffic for staleness.

    After γ-FedHT, arXiv 2505.12479 (INFOCOM 2025). **The threshold function of that paper is not public; this family is
    ours**, so results are not a reproduction of it. Hard threshold with error feedback: Sahu et al., NeurIPS 2021,
    arXiv 2108.00951. Calibration of λ_0 from a density is that of :class:`HardThreshold`.

    Args:
        threshold: λ_0, at least 0.
        density: share of entries that the calibration of λ_0 aims at, in (0, 1].
        alpha: α, at least 0.
        reference_lr: γ_0, above 0; None: the learning rate at which λ_0 came into force, that is the first one seen, or
            that of the round of the calibration; of a tensor that was first sent in a later round, of that one.
        scope: calibrate one λ_0 (``global``), or one for every tensor (``layer``).

    Raises:
        ConfigurationError: not exactly one of ``threshold`` and ``density`` is given, or a setting is out of range.
    """

    def __init__(
        self,
        threshold: float | None = None,
        density: float | None = None,
        alpha: float = 1.0,
        reference_lr: float | None = None,
        scope: Scope = "global",
    ) -> None:
        super().__init__(threshold, density, scope)
        if not 0 <= alpha < math.inf:
            raise ConfigurationError(f"Expected a finite alpha of at least 0 but got {alpha}")
        if reference_lr is not None and not 0 < reference_lr < math.inf:
            raise ConfigurationError(f"Expected a finite reference_lr above 0 but got {reference_lr}")
        self.alpha = alpha
        self.reference_lr = reference_lr
        self._references: dict[str, float] = {}  # by tensor: γ_0 that was not given
        self._lr: float | None = None  # of the round

    def scale(self, lr: float, name: str = WHOLE) -> float:
        """Return λ_t / λ_0 = (γ_t / γ_0)^α."""
        return stepsize_aware_threshold(1.0, lr, self.reference_lr or self._references.get(name) or lr, self.alpha)

    def begin_round(self, lr: float) -> None:
        """Take a learning rate for γ_0 while λ_0 is not yet in force.

        Raises:
            ConfigurationError: γ_0 is to be the first learning rate, and that is not above 0.
        """
        if not self._references and self.alpha > 0 and self.reference_lr is None and lr <= 0:
            raise ConfigurationError(f"Expected reference_lr, or a first learning rate above 0, but got {lr}")
        self._lr = lr
        if self._given is not None:
            self._references.setdefault(WHOLE, lr)

    def in_force(self, lr: float) -> float | None:
        """Return λ_t for a vector that is compressed now; see :meth:`HardThreshold.in_force`.

        Raises:
            ConfigurationError: as :meth:`begin_round`.
        """
        self.begin_round(lr)
        return super().in_force(lr)

    def end_round(self) -> None:  # noqa: D102
        super().end_round()
        if self._lr is not None:
            self._references |= {name: self._lr for name in self._calibrated if name not in self._references}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "references": dict(self._references), "lr": self._lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._references, self._lr = dict(state["references"]), state["lr"]
