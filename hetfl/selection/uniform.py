"""Uniform selection without replacement (McMahan et al., AISTATS 2017, algorithm 1)."""

from __future__ import annotations

import torch

from hetfl.seeding import generator
from hetfl.selection.base import Selection


class Uniform(Selection):
    """m of the N clients, every subset equally likely; a function of (seed, round) alone."""

    def select(self, round: int) -> list[int]:  # noqa: D102
        order = torch.randperm(len(self.sizes), generator=generator(self.seed, "selection", round))
        return order[: self.clients_per_round].tolist()
