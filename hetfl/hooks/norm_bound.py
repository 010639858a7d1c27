"""A bound, at the server, on the norm of every client's update."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, get_args

import torch

from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.hooks.base import Hook
from hetfl.layout import Index
from hetfl.types import Report
from hetfl.updates import Update

Action = Literal["refuse", "clip"]
COLUMNS: dict[Action, str] = {"refuse": "defence/refused", "clip": "defence/clipped"}
"""Columns that count what happened to updates above the bound."""


class NormBound(Hook):
    r"""Refuse or shorten updates whose 2-norm is larger than a bound (Sun et al., 2019, arXiv 1911.07963).

    With u the decoded update, float buffers included, and C the bound, ``clip`` adds up

    .. math:: u \min\bigl(1, C / \lVert u \rVert_2\bigr)

    and ``refuse`` leaves out an update with :math:`\lVert u \rVert_2 > C`: it counts as refused (``comm/refused``), the
    log names its client, and the client keeps its residual. The norm of an update grows with the client's level, its
    learning rate and its number of steps. With ``refuse``, a bound below the norms of honest updates stops training.

    Columns: ``defence/refused`` or ``defence/clipped``, the number of the round's updates above the bound; with several
    bounds, the sum of their numbers.

    Args:
        max_norm: C.
        action: ``refuse`` or ``clip``, for an update above the bound.

    Raises:
        ConfigurationError: the bound is not above 0, or ``action`` is neither of both.
    """

    adds_up: ClassVar[bool] = True

    refusal: ClassVar[type[RefusedUpdate]] = RefusedUpdate
    """What is raised for an update that is refused."""

    def __init__(self, max_norm: float, action: Action = "refuse") -> None:
        if not max_norm > 0:
            raise ConfigurationError(f"Expected max_norm above 0 for NormBound but got {max_norm}")
        if action not in get_args(Action):
            raise ConfigurationError(f"Expected action refuse or clip for NormBound but got {action}")
        self.max_norm, self.action = max_norm, action
        self._longer: dict[Action, int] = {action: 0}  # by action, the round's updates above the bound

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._longer = dict.fromkeys(self._longer, 0)

    def bound(self, index: Index, report: Report) -> float:
        """Return C for an update; a subclass may use its positions and the client's report."""
        return self.max_norm

    def on_update(self, update: Update, index: Index, report: Report) -> Update:  # noqa: D102
        bound = self.bound(index, report)
        norm = 0.0 if bound == math.inf else norm_of(update)  # norm_of makes the dense vector
        return self.bounded(update, norm, bound, self.action)

    def bounded(self, update: Update, norm: float, bound: float, action: Action) -> Update:
        """Return an update whose norm is at most a bound.

        Args:
            update: the update.
            norm: its 2-norm.
            bound: the largest norm.
            action: what happens to a longer update.

        Raises:
            RefusedUpdate: the update is longer, and ``action`` is ``refuse``.
        """
        if norm <= bound:
            return update
        self._longer[action] += 1
        if action == "refuse":
            raise self.refusal(f"Expected a norm of at most {bound:g} but got {norm:g}")
        return update.scaled(bound / norm)

    def columns(self) -> dict[str, float]:  # noqa: D102
        return {COLUMNS[action]: float(count) for action, count in self._longer.items()}


def norm_of(update: Update) -> float:
    """Return the 2-norm of an update, its float buffers included, in float64."""
    parts = (update.to_dense(), update.exact)
    return math.hypot(*(float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts))
