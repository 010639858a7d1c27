"""Sparsify, then quantise what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from hetfl.compression.base import Compressor, Context
from hetfl.compression.quantiser import Quantiser
from hetfl.compression.threshold_pass import Parts
from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.piece import Facts
from hetfl.types import Range, Report
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
        self.sparse = sparsifier.sparse

    @property
    def planned_density(self) -> float | None:  # noqa: D102
        return self.sparsifier.planned_density

    @property
    def value_bits(self) -> int:  # noqa: D102
        return self.quantiser.bits

    @property
    def title(self) -> str:  # noqa: D102
        return f"{self.sparsifier.title} with {self.quantiser.title} ({self.quantiser.bits} bits)"

    @property
    def needs_shapes(self) -> bool:  # noqa: D102
        return self.sparsifier.needs_shapes

    def apply(self, p_D: Tensor, context: Context) -> Update:  # noqa: D102
        return self.coded(self.sparsifier.apply(p_D, self._inner(context)), context)

    def fused(  # noqa: D102
        self, delta_D: Tensor, residual_D: Tensor | None, context: Context, out: Tensor | None
    ) -> Parts | None:
        return self.sparsifier.fused(delta_D, residual_D, self._inner(context), out)

    def coded(self, update: Update, context: Context) -> Update:
        """Return an update with codes in the place of its values, unless the sparsifier needs to see these."""
        if self.sparsifier.needs_values(update, context.layout):
            return update
        return self.quantiser.quantised(update, context.layout, context.generator)

    def _inner(self, context: Context) -> Context:
        """Return the context for the sparsifier: on the wire a value takes the bits of a code."""
        return replace(context, itemsize=self.quantiser.bits / 8)

    @property
    def expands(self) -> bool:
        """Whether one of the two does."""
        return self.sparsifier.expands or self.quantiser.expands

    def shared_bytes(self, layout: Layout) -> int:  # noqa: D102
        return self.sparsifier.shared_bytes(layout)

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self.sparsifier.setup(facts)

    def extras(self) -> dict[str, Range]:  # noqa: D102
        return self.sparsifier.extras()

    def report(self, delta_D: Tensor) -> dict[str, float]:  # noqa: D102
        return self.sparsifier.report(delta_D)

    def begin_round(self, lr: float) -> None:  # noqa: D102
        self.sparsifier.begin_round(lr)

    def observe(self, update: Update, layout: Layout | None = None, report: Report | None = None) -> None:  # noqa: D102
        self.sparsifier.observe(update, layout, report)

    def end_round(self) -> None:  # noqa: D102
        self.sparsifier.end_round()

    def columns(self) -> dict[str, float]:  # noqa: D102
        return self.sparsifier.columns()

    def threshold(self, lr: float) -> float | None:  # noqa: D102
        return self.sparsifier.threshold(lr)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.sparsifier.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.sparsifier.load_state_dict(state)
