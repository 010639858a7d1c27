"""Robust rules for every entry on its own: the mean of the values in the middle, over the entry's holders."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from hetfl.aggregators.holder_mean import frozen_zeros
from hetfl.aggregators.order import Ranks, middle_mean, middle_means
from hetfl.aggregators.robust import Step, clipped
from hetfl.aggregators.stacks import Stack, stacks
from hetfl.aggregators.waiting import Waiting
from hetfl.arguments import choice
from hetfl.errors import ConfigurationError

Outside = Literal["keep", "clip", "mean"]
"""What happens to entries with few holders: they keep their values, or move by a clipped or a plain mean."""
Factors = Callable[[], list[tuple[float, float]]]
"""Returns for each client the factors that clip its vector and its exact block."""


@dataclass(frozen=True)
class Entrywise:
    """Sorts the values of the holders of each entry, and averages those in the middle.

    The rule is computed region by region: entries that the same clients hold. Float buffers follow the same rule.

    With n holders, the middle is right as long as fewer than half of them are hostile. Few clients hold the outer
    entries, so hostile clients are more often half of the holders there. If 20 of 100 clients are hostile, the
    probability of that is 0.36 for two holders, 0.053 for five and 0.026 for ten.

    Args:
        ranks: returns the ranks of the sorted values of n holders that are averaged.
        min_holders: fewest holders of an entry for the rule.
        outside: what happens to entries with fewer holders. ``keep``: they keep their values. ``clip``: they move by
            the mean of their holders' updates, each clipped to the usual norm of its level. ``mean``: by the mean.

    Raises:
        ConfigurationError: ``min_holders`` is below 1, or ``outside`` is unknown.
    """

    ranks: Callable[[int], Ranks]
    min_holders: int
    outside: Outside

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.min_holders < 1:
            raise ConfigurationError(f"Expected min_holders of at least 1 but got {self.min_holders}")
        choice("outside", self.outside, Outside)

    def combine(self, tensors: Mapping[str, Tensor], waiting: Sequence[Waiting]) -> Step:
        """Return the step and the holders of every tensor; see :meth:`RobustAggregator.combine`."""
        frozen = frozen_zeros(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in frozen}
        steps, held = ({name: torch.zeros_like(tensor) for name, tensor in tensors.items()} for _ in range(2))
        factors = cache(lambda: clipped(waiting))
        for stack in stacks(waiting, tensors):
            step_W, count_W = self._of_stack(stack, self._few(stack, factors))
            for place in stack.places:
                place.put(steps, step_W)
                place.put(held, count_W)
        return {**steps, **frozen}, {**held, **frozen}

    def _of_stack(self, stack: Stack, few_W: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the step and the number of holders of each entry, 0 where the entry keeps its value."""
        values_SW, counts_W = stack.values_SW, stack.counts_W
        if counts_W is None:
            count_W = values_SW.new_tensor(float(len(stack.holders))).expand(values_SW.shape[1])
            if len(stack.holders) >= self.min_holders:
                return middle_mean(values_SW, self.ranks(len(stack.holders))), count_W
            return (values_SW.new_zeros(count_W.shape), 0.0 * count_W) if few_W is None else (few_W, count_W)
        step_W = middle_means(values_SW, counts_W, self.ranks)
        enough_W, count_W = counts_W >= self.min_holders, counts_W.to(step_W)
        if few_W is None:
            return torch.where(enough_W, step_W, 0.0), torch.where(enough_W, count_W, 0.0)
        return torch.where(enough_W, step_W, few_W), count_W

    def _few(self, stack: Stack, factors: Factors) -> Tensor | None:
        """Return the step of entries with few holders; None: there are no such entries, or they keep their values."""
        few = len(stack.holders) if stack.counts_W is None else int(stack.counts_W.min())
        if few >= self.min_holders or self.outside == "keep":
            return None
        total_W = torch.zeros_like(stack.values_SW[0])
        for row_W, k in zip(stack.values_SW, stack.holders, strict=True):
            scale = factors()[k][stack.exact] if self.outside == "clip" else 1.0
            total_W.add_(torch.where(row_W == math.inf, 0.0, row_W), alpha=scale)
        return total_W / (len(stack.holders) if stack.counts_W is None else stack.counts_W.clamp(min=1))
