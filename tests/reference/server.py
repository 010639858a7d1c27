"""The reference server: means over holders, and the optimizer's step, entry by entry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.reference.client import Masks, Positions
from tests.reference.layers import Array, Tensors
from tests.reference.rules import Rules, is_buffer


@dataclass(frozen=True)
class Arrived:
    """An accepted update in global coordinates: decoded values, the positions of its entries, and the held ones."""

    client: int
    cluster: int
    sent: Tensors
    where: Positions
    masks: Masks
    samples: int
    loss: float
    initial_loss: float = 0.0


def mean(rules: Rules, arrived: list[Arrived], like: Tensors, lr: float) -> dict[str, tuple[Array, Array]]:
    """Return per tensor the mean step of each entry, and the number or weight of its holders."""
    steps = {}
    for name, tensor in like.items():
        above, below = np.zeros_like(tensor), np.zeros_like(tensor)
        for update in (update for update in arrived if name in update.where):
            mesh = np.ix_(*update.where[name])
            factor, weight = _weights(rules, update, name, lr)
            above[mesh] += factor * update.sent[name][mesh]
            below[mesh] += weight * (update.masks[name][mesh] if name in update.masks else 1.0)
        cohort = sum(_weights(rules, update, name, lr)[1] for update in arrived) if rules.of_cohort else below
        steps[name] = np.divide(above, cohort, out=np.zeros_like(above), where=below > 0), below
    return steps


def _weights(rules: Rules, update: Arrived, name: str, lr: float) -> tuple[float, float]:
    """Return an update's factor in the numerator, and its summand in the denominator."""
    if rules.q is None:
        weight = float(update.samples) if rules.samples else 1.0
        return weight, weight
    assert not is_buffer(name)
    loss = update.initial_loss + 1e-10
    squared = sum((sent[np.ix_(*update.where[key])] ** 2).sum() for key, sent in update.sent.items())
    curvature = rules.q * loss ** (rules.q - 1) * squared / lr**2 + loss**rules.q / lr
    return loss**rules.q / lr, float(curvature)


class Optimizer:
    """The server's SGD with momentum, or Adam, for one tensor; an entry without holders keeps its value and state."""

    def __init__(self, rules: Rules, tensor: Array) -> None:
        self.rules, self.steps = rules, 0
        self.first: Array = np.zeros_like(tensor)
        self.second: Array = np.zeros_like(tensor)

    def step(self, tensor: Array, delta: Array, held: Array) -> None:
        rules, grad = self.rules, -delta
        self.steps += 1
        if rules.adam:
            first, second = 0.9 * self.first + 0.1 * grad, 0.999 * self.second + 0.001 * grad**2
            corrected = np.sqrt(second / (1 - 0.999**self.steps)) + 1e-8
            move = rules.server_lr * first / (1 - 0.9**self.steps) / corrected
        else:
            first, second = rules.server_momentum * self.first + grad, self.second
            move = rules.server_lr * first
        here = held > 0
        self.first, self.second = np.where(here, first, self.first), np.where(here, second, self.second)
        tensor[here] -= move[here]
