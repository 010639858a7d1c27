"""A bound, at the server, on the norm of every client's update that follows the norms of honest clients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError, RefusedUpdate, UnusualUpdate
from hetfl.hooks.norm_bound import Action, NormBound, norm_of
from hetfl.layout import Index
from hetfl.part import part_of
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update


class MedianBound(NormBound):
    r"""Refuse or clip updates that are much longer than the usual ones of their level.

    .. math:: C = f \sqrt{d} \cdot \operatorname{median}_i \frac{\lVert u_i \rVert_2}{\sqrt{d_i}}

    over the last ``window`` updates of clients of the same level, received before this one, with d the number of sent
    entries and f the factor. While a level has fewer than ``enough`` updates, those of all levels count. While there
    are fewer of these, C is ``first`` times the 2-norm of the global model, or times the root of its number of entries
    if it is zero. As long as the bound is not that of the level itself, longer updates are clipped, whatever ``action``
    says.

    Updates that are clipped or refused count in the median, too: the bound follows when honest updates become longer.
    Until it has followed, which takes half a window of updates at most, ``refuse`` leaves longer ones out. If these are
    all updates of a round, the model stays as it is, and the run goes on. Where the learning rate rises in leaps (a
    short warm-up, restarts), ``clip`` loses less. The bound holds as long as fewer than half of the last updates of a
    level are hostile.

    Columns: ``defence/clipped``, and ``defence/refused`` if ``action`` is ``refuse``, the number of the round's updates
    that were.

    Args:
        factor: f, above 1.
        action: ``refuse`` or ``clip``, for an update above the bound of its level. A clipped update with its sign
            turned still pulls the model as far as ``factor`` honest ones; a refused one does not.
        window: number of remembered updates of each level.
        enough: the fewest updates for a median.
        first: bound before there are enough updates, relative to the norm of the global model.

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    refusal: ClassVar[type[RefusedUpdate]] = UnusualUpdate

    def __init__(
        self, factor: float = 3.0, action: Action = "refuse", window: int = 50, enough: int = 5, first: float = 0.1
    ) -> None:
        super().__init__(math.inf, action)
        if not factor > 1.0 or not first > 0.0 or not 1 <= enough <= window:
            raise ConfigurationError(
                f"Expected factor above 1, first above 0 and 1 <= enough <= window for MedianBound but got {factor}, "
                f"{first}, {enough}, {window}"
            )
        self._longer.setdefault("clip", 0)
        self.factor, self.window, self.enough, self.first = factor, window, enough, first
        self._norms: dict[str, deque[float]] = {}  # by level, norms of the last updates per square root of entries
        self._parameters: Mapping[str, Tensor] = {}

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._parameters = facts.parameters

    def usual(self, level: str) -> float | None:
        """Return the median norm per square root of entries at a level; None: there are too few updates."""
        norms = list(self._norms.get(level, ()))
        if len(norms) < self.enough:
            norms = [norm for each in self._norms.values() for norm in each]
        return median(norms) if len(norms) >= self.enough else None

    def on_update(self, update: Update, index: Index, report: Report) -> Update:  # noqa: D102
        root, norm, usual = math.sqrt(max(1, part_of(index).size)), norm_of(update), self.usual(report.level)
        norms = self._norms.setdefault(report.level, deque(maxlen=self.window))
        action = self.action if len(norms) >= self.enough else "clip"
        norms.append(norm / root)
        bound = self.first * self._model_norm() if usual is None else self.factor * usual * root
        return self.bounded(update, norm, bound, action)

    def _model_norm(self) -> float:
        norms = [float(torch.linalg.vector_norm(each.detach().double())) for each in self._parameters.values()]
        return math.hypot(*norms) or math.sqrt(sum(each.numel() for each in self._parameters.values()))

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"norms": {level: list(norms) for level, norms in self._norms.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self._norms = {level: deque(norms, maxlen=self.window) for level, norms in state["norms"].items()}
