"""The bound of the server's command line on the norm of an update."""

from __future__ import annotations

import math

from hetfl.hooks import NormBound


class ServerBound(NormBound):
    """Refuses longer updates, by ``--max_norm`` of the server: no node knows it, and a run may go on with another one.

    Args:
        max_norm: the largest 2-norm of an update; None: any.
    """

    def __init__(self, max_norm: float | None) -> None:
        super().__init__(math.inf if max_norm is None else max_norm)

    def describe(self) -> str:
        """Return nothing: it is no setting that nodes or a checkpoint must agree in."""
        return ""

    def columns(self) -> dict[str, float]:
        """Return nothing: ``comm/refused`` counts what it refuses, and the log names it."""
        return {}
