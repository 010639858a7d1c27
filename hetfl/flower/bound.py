"""The bound of the server's command line on the norm of an update."""

from __future__ import annotations

import math

from hetfl.hooks import NormBound


class ServerBound(NormBound):
    """Refuses updates whose norm exceeds the server's ``--max_norm``.

    Nodes do not know the bound, and a run may be resumed with another one.

    Args:
        max_norm: the largest 2-norm of an update; None: no bound.
    """

    def __init__(self, max_norm: float | None) -> None:
        super().__init__(math.inf if max_norm is None else max_norm)

    def describe(self) -> str:
        """Return nothing: neither nodes nor a checkpoint must agree with the bound."""
        return ""

    def columns(self) -> dict[str, float]:
        """Return nothing: ``comm/refused`` counts the refused updates, and the log names their clients."""
        return {}
