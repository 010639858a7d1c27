"""Sparsify, then quantise what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from hetfl.compression.base import Compressor, Context
from hetfl.compression.quantiser import Quantiser
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.updates import Update


class Chain(Compressor):
    """Send what a compressor chooses, and its values as a quantiser's codes: C(p) = Q(S(p)).

    What is lost to rounding is in the residual, as what is not chosen. For error feedback with both at once see Basu et
    al., Qsparse-local-SGD, NeurIPS 2019, arXiv 1906.02367. Updates by which a threshold is calibrated are not
    quantised, so that the threshold is that of the sparsifier alone.

    Args:
        sparsifier: S; any compressor that sends values as floating-point numbers.
        quantiser: Q; its buckets are over the values that are sent.

    Raises:
        ConfigurationError: the sparsifier sends codes itself.
    """

    def __init__(self, sparsifier: Compressor, quantiser: Quantiser) -> None:
        if isinstance(sparsifier, Quantiser | Chain):
            raise ConfigurationError(
                f"Expected a sparsifier that sends floating-point numbers for Chain but got {sparsifier}"
            )
        self.sparsifier, self.quantiser = sparsifier, quantiser

    @property
    def needs_shapes(self) -> bool:  # noqa: D102
        return self.sparsifier.needs_shapes

    def apply(self, p_D: Tensor, context: Context) -> Update:  # noqa: D102
        update = self.sparsifier.apply(p_D, replace(context, itemsize=self.quantiser.bits / 8))
        if self.sparsifier.needs_values(update, context.layout):
            return update
        return self.quantiser.quantised(update, context.layout, context.generator)

    @property
    def expands(self) -> bool:
        """Whether one of the two does."""
        return self.sparsifier.expands or self.quantiser.expands

    def shared_bytes(self, layout: Layout) -> int:  # noqa: D102
        return self.sparsifier.shared_bytes(layout)

    def begin_round(self, lr: float) -> None:  # noqa: D102
        self.sparsifier.begin_round(lr)

    def observe(self, update: Update, layout: Layout | None = None) -> None:  # noqa: D102
        self.sparsifier.observe(update, layout)

    def end_round(self) -> None:  # noqa: D102
        self.sparsifier.end_round()

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        return self.sparsifier.threshold(lr)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.sparsifier.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.sparsifier.load_state_dict(state)
