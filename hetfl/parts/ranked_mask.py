"""Masks of the best-scored entries of the global model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.part import Part
from hetfl.parts.mask_rule import MaskRule, weights_of
from hetfl.pruning.criteria import Criterion, Magnitude
from hetfl.pruning.densities import Scope, best, density_of
from hetfl.pruning.gradients import GradientRequest
from hetfl.pruning.schedules import DensitySchedule


class RankedMask(MaskRule):
    """A level holds the best-scored entries of the global model's weights, as many as its density says.

    All weights are scored before the first round, and at the end of every round in which a ranking is due. Masks of
    several densities are nested, since all use the same scores.

    Args:
        criterion: scores entries; None: their magnitude. A criterion that needs gradients asks the cohort of the round,
            and one that needs gradients or earlier values ranks by magnitude before the first round.
        scope: ``layer``: the same density in every weight; ``erk``: densities by size of the weight; ``global``: all
            entries together, at least one in every weight.
        schedule: density over the rounds; None: constant.
        every: rounds between two rankings; 0: no ranking after the first.
        shrink: whether a pruned entry stays pruned.
        erase: whether the global model's entries outside of the largest mask become zero. For the criterion they then
            began at zero.
        complement: whether clients begin with the entries of the mask, train all entries, and send those of the weights
            that are outside of it. Entries in the mask then keep their values. While the mask has all entries, clients
            send all. It implies ``erase``.

    Raises:
        ConfigurationError: ``scope`` is unknown, ``every`` is negative, the criterion does not score every entry, or
            ``complement`` is used with ``shrink`` or with several densities below 1.
    """

    several_densities: ClassVar[bool] = True

    def __init__(
        self,
        criterion: Criterion | None = None,
        scope: Scope = "layer",
        schedule: DensitySchedule | None = None,
        every: int = 1,
        shrink: bool = False,
        erase: bool = False,
        complement: bool = False,
    ) -> None:
        if every < 0:
            raise ConfigurationError(f"Expected every of at least 0 rounds but got {every}")
        self.criterion, self.scope, self.every = criterion or Magnitude(), choice("scope", scope, Scope), every
        self._scope = self.scope
        if self.criterion.of_norms:
            raise ConfigurationError(f"Expected a criterion for every entry but got {self.criterion.describe()}")
        if complement and shrink:
            raise ConfigurationError("Expected shrink: false with complement, where entries return, but got true")
        self.schedule, self.shrink, self.erase = schedule or DensitySchedule(), shrink, erase or complement
        self.complement = self.trains_all = complement
        self.open_ended = self.schedule.open_ended
        self.asks_gradients = self.criterion.needs_gradients
        self._before: dict[str, Tensor] = {}  # the weights before the round's step
        self._start: dict[str, Tensor] = {}  # those at the start of the run, if the criterion needs them

    def meet(self, levels: LevelSet, seed: int) -> None:
        """Set the levels and the seed.

        Raises:
            ConfigurationError: an error of the base class, or ``complement`` is used with several densities below 1.
        """
        super().meet(levels, seed)
        if self.complement and len(self.sparse) > 1:
            raise ConfigurationError(f"Expected one density below 1 with complement but got {self.sparse}")

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        criterion = Magnitude() if self.criterion.needs_rounds else self.criterion
        return self._ranked(criterion.scores(self.evidence(seed=self.random_seed(-1))), 0)

    def begin(self) -> None:
        """Note the values at the start, if the criterion needs them; erase the entries outside of the largest mask."""
        if self.criterion.needs_history and not self._start:
            self._start = {name: weight.clone() for name, weight in self.weights.items()}
        if self.erase:
            self.clear_pruned()

    def clear_pruned(self) -> None:
        """Set the weights outside of the largest mask to zero, and their values at the start, too."""
        super().clear_pruned()
        self._start = {n: each.masked_fill(~self.mask[n].to(each.device), 0.0) for n, each in self._start.items()}

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        """Return the part, or the entries outside of its mask and all entries of other tensors than weights."""
        if not self.complement or part.mask_D is None:
            return part
        return part.derived("complement", lambda: self._outside(part))

    def _outside(self, part: Part) -> Part:
        pieces = zip(part, part.mask_D.split(part.layout.sizes), strict=True)  # type: ignore[union-attr]
        weights = self.weights.keys()
        return Part(part, torch.cat([~piece if name in weights else piece for name, piece in pieces]))

    def due(self, round: int) -> bool:
        """Return whether weights are scored at the end of a round."""
        return self.every > 0 and (round + 1) % self.every == 0

    def request(self, round: int) -> GradientRequest | None:
        """Return a request for the gradients of all entries, if the criterion needs them and a ranking is due."""
        return GradientRequest() if self.asks_gradients and self.due(round) else None

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        if self.criterion.needs_history and self.due(round):
            self._before = {name: weight.clone() for name, weight in self.weights.items()}

    def end_round(self, round: int) -> None:  # noqa: D102
        if self.due(round) and (not self.asks_gradients or (self.asked is not None and self.asked.samples)):
            # the largest mask has all entries that any level may still hold
            scores, may = self._scores(round), self.mask if self.shrink else self.whole()
            scores = {name: score.masked_fill(~may[name].to(score.device), -1.0) for name, score in scores.items()}
            ranked = self._ranked(scores, round + 1)  # a run with further rounds may have larger densities again
            self.hold({density: {n: mask & may[n] for n, mask in masks.items()} for density, masks in ranked.items()})
        if self.erase:
            self.clear_pruned()

    def columns(self) -> dict[str, float]:
        """Return the density of the largest mask over all weights, if there is a schedule of densities."""
        if type(self.schedule) is DensitySchedule:
            return {}
        return {"parts/density": density_of(self.mask)}

    def _scores(self, round: int) -> dict[str, Tensor]:
        known: dict[str, object] = {"seed": self.random_seed(round)}
        if self.asked is not None:
            asked = self.asked
            known |= {"gradients": asked.means, "squares": asked.squares, "seconds": self.seconds()}
        if self.criterion.needs_history:
            start = {name: self._start[name].to(weight) for name, weight in self.weights.items()}
            known |= {"last": self._before, "start": start}
        return self.criterion.scores(self.evidence(**known))

    def _ranked(self, scores: dict[str, Tensor], round: int) -> dict[float, dict[str, Tensor]]:
        """Return the masks by density of the levels, for a round."""
        now = {final: self.schedule.density(final, round, self.rounds) for final in self.sparse}
        return {final: best(scores, self.scope, density) for final, density in now.items()}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {**super().state_dict(), "start": self._start}

    def evaluation_state(self) -> dict[str, Any]:  # noqa: D102
        return super().state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        if self.criterion.needs_history:  # older checkpoints are of runs that began with the drawn values
            self._start = dict(state["start"] if "start" in state else weights_of(self.levels.draw()))
