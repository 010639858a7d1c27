"""FedRolex: a window of channels that moves by one channel per round."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hetfl.part import Part
from hetfl.parts.base import PartRule


class Rolling(PartRule):
    r"""In round t a level's clients hold the channels :math:`t, t + 1, \dots, t + n - 1` of N, modulo N.

    The window begins at the same channel for all levels and clients, so a small level's channels are a subset of a
    larger level's, and over N rounds every channel is held equally often.

    Alam, Liu, Yan, Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction, NeurIPS
    2022 (arXiv 2212.01548), section 3.2.
    """

    def __init__(self) -> None:
        self._round, self._parts = -1, dict[str, Part]()

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        if round != self._round:
            self._round, self._parts = round, {}
        if level not in self._parts:
            self._parts[level] = self.of_channels(level, partial(window, round))
        return self._parts[level]


def window(start: int, of: int, held: int) -> slice | Tensor:
    """Return ``held`` consecutive positions of ``of``, from ``start`` on, modulo ``of``, in ascending order.

    >>> window(1, 4, 2), window(3, 4, 2)
    (slice(1, 3, None), tensor([0, 3]))
    """
    start %= of
    if start + held <= of:
        return slice(start, start + held)
    return torch.cat([torch.arange(start + held - of), torch.arange(start, of)])
