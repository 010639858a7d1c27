"""Regression: numbers as targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from hetfl.errors import ConfigurationError
from hetfl.objectives.base import HeadlineOfSums, Objective, expected_targets
from hetfl.runs.headline import Headline

HEADLINES = {
    "r2": Headline("r2", percent=False, title="R²"),
    "mae": Headline("mae", higher_is_better=False, percent=False, title="mean absolute error"),
}
"""The scores by which models may be compared."""


LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
"""The losses by name."""


class Regression(Objective):
    r"""Each sample has Q numbers; the net predicts their difference from ``offset`` in units of ``scale``.

    .. math:: \hat y = \text{offset} + \text{scale} \cdot z, \qquad
        R^2 = \frac1Q \sum_q 1 - \frac{\sum_n (y_{nq} - \hat y_{nq})^2}{\sum_n (y_{nq} - \bar y_q)^2}

    Targets are floats, shape (N, Q), or (N,) for Q = 1; outputs z have shape (N, Q). The loss compares z with
    (y - offset) / scale; scores are in the units of the targets. ``r2`` and ``mae`` are both logged. R² is undefined
    for equal targets, so a client with equal test targets has no R².

    Args:
        loss: ``mse``, ``l1``, or ``huber``, which is quadratic up to 1 and linear beyond.
        offset: the target that an output of 0 means; about the mean of the targets.
        scale: the unit of the outputs; about the standard deviation of the targets.
        headline: the score by which models are compared: ``r2`` or ``mae``.

    Raises:
        ConfigurationError: the loss or headline is unknown, the scale is not positive, or the offset is not finite.
    """

    def __init__(
        self,
        loss: str = "mse",
        offset: float = 0.0,
        scale: float = 1.0,
        headline: str = "r2",
    ) -> None:
        if loss not in LOSSES or headline not in HEADLINES:
            raise ConfigurationError(
                f"Expected a loss in {list(LOSSES)} and a headline in {list(HEADLINES)} but got {loss} and {headline}"
            )
        if not 0 < scale < math.inf or not math.isfinite(offset):
            raise ConfigurationError(f"Expected a finite offset and a scale above 0 but got {offset} and {scale}")
        self.kind, self.offset, self.scale = loss, offset, scale
        self.headline = HEADLINES[headline]

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {"loss": self.kind, "offset": self.offset, "scale": self.scale, "headline": self.headline.name}

    def prepared(self, targets: Tensor, where: str) -> Tensor:  # noqa: D102
        if not targets.is_floating_point() or targets.dim() not in (1, 2):
            raise expected_targets("floats of shape (n,) or (n, outputs)", targets, where, type(self).__name__)
        numbers = targets.to(torch.get_default_dtype())
        if not bool(numbers.isfinite().all()):
            raise ConfigurationError(f"Expected finite {where} targets for {type(self).__name__} but got others")
        return numbers if numbers.dim() == 2 else numbers.unsqueeze(1)

    def size(self, targets: Tensor) -> int:  # noqa: D102
        return targets.shape[1]

    def check_size(self, targets: Tensor, size: int, where: str) -> None:  # noqa: D102
        if targets.shape[1] != size:
            raise ConfigurationError(f"Expected {where} targets of {size} numbers but got {targets.shape[1]}")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        dtype = torch.promote_types(outputs.dtype, torch.float32)  # bfloat16 would round the targets
        wanted = ((targets - self.offset) / self.scale).to(dtype)
        return LOSSES[self.kind](outputs.to(dtype), wanted, reduction="none").mean((-2, -1))

    def metrics(self, size: int) -> Mapping[str, Metric]:  # noqa: D102
        names = (self.headline.name, *(name for name in HEADLINES if name != self.headline.name))
        return {name: HeadlineOfSums(Regression(self.kind, self.offset, self.scale, name)) for name in names}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        given = targets.double()
        errors = self.offset + self.scale * outputs.double() - given
        ones = torch.ones_like(given[..., :1])
        if self.headline.name == "mae":
            return torch.cat([errors.abs().mean(-1, keepdim=True), ones], dim=-1)
        centred = given - self.offset  # differences of large squares would lose precision
        return torch.cat([ones, centred, centred.square(), errors.square()], dim=-1)

    def score(self, sums: Tensor) -> Tensor:  # noqa: D102
        if self.headline.name == "mae":
            return sums[..., 0] / sums[..., 1]
        count, rest = sums[..., :1], sums[..., 1:]
        total, squares, errors = rest.chunk(3, dim=-1)
        spread = squares - total.square() / count
        return torch.where(spread > 1e-12 * squares, 1 - errors / spread, torch.nan).mean(-1)
