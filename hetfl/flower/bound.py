"""The server's bound on the norm of an update, which holds without a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hetfl.hooks import Hooks, MedianBound, NormBound
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import Update

FACTOR = 5.0
"""The bound relative to the usual norm of a level; above that of MedianBound, as nobody may watch the run."""
FIRST = 1.0
"""The bound before updates are known, relative to the norm of the global model."""


class ServerBound(NormBound):
    """Bounds updates by the usual norms of their level or, with ``--max_norm``, by a constant.

    Nodes do not know the bound, and a run may be resumed with another one.

    Columns: ``defence/bounded``, the number of the round's updates above the bound.

    Args:
        max_norm: the largest 2-norm of an update, inf for no bound; None: the bound follows the updates.
        follows: whether the bound follows the updates where ``max_norm`` is None; if not, there is none.
    """

    def __init__(self, max_norm: float | None, follows: bool = True) -> None:
        super().__init__(math.inf if max_norm is None else max_norm)
        self.follows = max_norm is None and follows
        self.following = MedianBound(FACTOR, first=FIRST)

    @staticmethod
    def beside(hooks: Hooks, max_norm: float | None) -> ServerBound:
        """Return the bound for a run with some hooks: where one of these is a bound, it follows nothing."""
        return ServerBound(max_norm, not any(isinstance(hook, NormBound) for hook in hooks.named.values()))

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self.following.setup(facts)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self.following.begin_round(round, lr)

    def on_update(self, update: Update, index: Index, report: Report) -> Update:  # noqa: D102
        if self.follows:
            return self.following.on_update(update, index, report)
        return super().on_update(update, index, report)

    def describe(self) -> str:
        """Return nothing: neither nodes nor a checkpoint must agree with the bound."""
        return ""

    def columns(self) -> dict[str, float]:  # noqa: D102
        longer = self.following.columns() if self.follows else super().columns()
        return {"defence/bounded": sum(longer.values())}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.following.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: D102
        self.following.load_state_dict({"norms": {}, **state})
