"""A hard threshold that follows the learning rate."""

from __future__ import annotations

import math
from typing import Any

from hetfl.compression.hard_threshold import HardThreshold, Weighting
from hetfl.compression.laws import Law, paper_law, power_law
from hetfl.compression.scope import Scope
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts

DEFAULT_ALPHA = 0.25


class GammaFedHT(HardThreshold):
    r"""Stepsize-aware hard threshold: send |p_i| ≥ λ_t and p_i ≠ 0, with λ_t given by the learning rate γ_t.

    .. math:: λ_t = λ_0 \sqrt{ \frac{γ_t^α (γ_0 γ_T)^{α/2}}{γ_t^{2α} + (γ_0 γ_T)^α} }

    rises from the first round, has its peak λ_0/√2 where γ_t = √(γ_0 γ_T), and falls to the last round. α = 0 gives the
    constant λ_0/√2. γ-FedHT: Sahu et al.'s hard threshold with error feedback made aware of the stepsize, arXiv
    2505.12479 (INFOCOM 2025), algorithm 1, line 11. The paper's α is not public.

    ``law: power`` is the family λ_t = λ_0 (γ_t / γ_0)^α, which is not the paper's. As λ falls with γ_t, it releases old
    residuals when steps are too small to make use of them.

    λ_0 is ``threshold``, or follows from ``density`` or ``budget`` as in :class:`HardThreshold`. A calibration gives
    the threshold λ_t of its round; λ_0 is computed from it by the law.

    Args:
        threshold: λ_0, at least 0.
        density: share of entries that the calibration of λ_0 aims at, in (0, 1].
        budget: bytes of all accepted updates of the run, above 1; or a mean density over the run, in (0, 1].
        alpha: α, at least 0; null: 0.25. Where it is given, ``law`` must be too.
        law: ``paper`` or ``power``; null: ``paper``.
        reference_lr: γ_0, above 0; null: the first learning rate of the run.
        final_lr: γ_T, above 0; null: the last learning rate of the run, by its schedule and number of rounds, and γ_0
            for vectors that are compressed outside of a run. The law ``power`` has none.
        scope: calibrate one λ_0 (``global``), or one for every tensor (``layer``).
        weighting: as in :class:`HardThreshold`.

    Raises:
        ConfigurationError: not exactly one of ``threshold``, ``density`` and ``budget`` is given, ``alpha`` comes
            without ``law``, or a setting is out of range.
    """

    def __init__(
        self,
        threshold: float | None = None,
        density: float | None = None,
        *,
        budget: float | None = None,
        alpha: float | None = None,
        law: Law | None = None,
        reference_lr: float | None = None,
        final_lr: float | None = None,
        scope: Scope = "global",
        weighting: Weighting = "none",
    ) -> None:
        super().__init__(threshold, density, budget=budget, scope=scope, weighting=weighting)
        if alpha is not None and law is None:
            raise ConfigurationError(
                f"Expected law beside alpha={alpha} but got none: law: power is what alpha meant before there was a "
                "law, λ_0 (γ_t / γ_0)^α; law: paper is that of γ-FedHT"
            )
        self.alpha = DEFAULT_ALPHA if alpha is None else alpha
        self.law: Law = law or "paper"
        self.reference_lr, self.final_lr = reference_lr, final_lr
        if not 0 <= self.alpha < math.inf:
            raise ConfigurationError(f"Expected a finite alpha of at least 0 but got {alpha}")
        for name, lr in (("reference_lr", reference_lr), ("final_lr", final_lr)):
            if lr is not None and not 0 < lr < math.inf:
                raise ConfigurationError(f"Expected a finite {name} above 0 but got {lr}")
        if final_lr is not None and self.law == "power":
            raise ConfigurationError(f"Expected no final_lr with law: power, which has none, but got {final_lr}")
        self._first: float | None = None  # γ_0 and γ_T of the run
        self._last: float | None = None
        self._endless = False  # whether the run has no last round

    def setup(self, facts: Facts) -> None:
        """Learn γ_0 and γ_T, or forget them if there are no rounds; see :meth:`Compressor.setup`.

        Raises:
            ConfigurationError: the law needs one of them, and it is not above 0.
        """
        self._endless = facts.rounds is not None and not facts.lrs
        self._first, self._last = (facts.lrs[0], facts.lrs[-1]) if facts.lrs else (None, None)
        if self._first is not None:
            self.scale(self._first)
        super().setup(facts)

    def begin_round(self, lr: float) -> None:
        """Begin a round; see :meth:`Compressor.begin_round`.

        Raises:
            ConfigurationError: the law needs γ_T, and the run has no last round.
        """
        if self._endless and self.law == "paper" and self.alpha > 0 and self.final_lr is None:
            raise ConfigurationError("Expected final_lr, or a number of rounds (trainer.max_epochs), but got neither")
        super().begin_round(lr)

    def scale(self, lr: float) -> float:
        """Return λ_t / λ_0, as the law has it.

        Raises:
            ConfigurationError: it needs γ_0 or γ_T, and they are not known or not above 0.
        """
        constant = self.alpha == 0
        first = 1.0 if constant else self._required("reference_lr", self.reference_lr, self._first)
        if self.law == "power":
            return power_law(lr, first, self.alpha)
        last = 1.0 if constant else self._required("final_lr", self.final_lr, self._last, otherwise=first)
        return paper_law(lr, first, last, self.alpha)

    def _required(self, name: str, given: float | None, of_run: float | None, otherwise: float | None = None) -> float:
        lr = given if given is not None else of_run if of_run is not None else otherwise
        if lr is None or lr <= 0:
            end = "first" if name == "reference_lr" else "last"
            raise ConfigurationError(f"Expected {name}, or a run whose {end} learning rate is above 0, but got {lr}")
        return lr

    def meet(self, lr: float) -> None:
        """Learn a learning rate; it is γ_0 if there is none yet.

        Raises:
            ConfigurationError: the law needs a learning rate that is not known or not above 0.
        """
        if self._first is None:
            self._first = lr
        self.scale(lr)
        super().meet(lr)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "first_lr": self._first, "last_lr": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; a run that goes on knows γ_T, as it may be longer.

        Raises:
            ConfigurationError: the state is of the first edition, whose law was the power of the learning rate.
        """
        if "references" in state:
            raise ConfigurationError(
                "Expected a checkpoint with the law of GammaFedHT but got one of an earlier edition, whose law was the "
                "power of the learning rate: train anew, with law: power for the same thresholds"
            )
        values = dict(state)
        first, last = values.pop("first_lr"), values.pop("last_lr")
        self._first = self._first if first is None else first
        self._last = last if self._last is None else self._last
        super().load_state_dict(values)
