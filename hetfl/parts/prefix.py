"""Leading channels and first stages, as in HeteroFL and DepthFL."""

from __future__ import annotations

from typing import ClassVar

from hetfl.part import Part
from hetfl.parts.base import PartRule


class Prefix(PartRule):
    """A level's clients hold the leading block of every tensor, in every round.

    Diao, Ding, Tarokh: HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients,
    ICLR 2021 (arXiv 2010.01264), section 3.
    """

    per_level: ClassVar[bool] = True

    def part(self, level: str, round: int, client: int) -> Part:  # noqa: D102
        return self.levels.indices[level]
