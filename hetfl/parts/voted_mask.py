"""A mask that the clients vote on: each by the values that it trained."""

from __future__ import annotations

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.client_values import client_values
from hetfl.parts.mask_rule import MaskRule, copies_of
from hetfl.pruning.densities import Scope, best, density_of, largest
from hetfl.pruning.schedules import DensitySchedule
from hetfl.types import Report
from hetfl.updates import Update


class VotedMask(MaskRule):
    r"""Keeps the entries that more than half of a round's clients keep when each prunes its own values.

    In a round in which pruning is due, a client's vote is the mask of its largest values after training, at the density
    of the schedule. The server counts the votes :math:`v_i` of its m clients in their updates:

    .. math:: \text{mask}_i \leftarrow \text{mask}_i \cdot [2 v_i > m]

    Pruned entries are zero and never return. At least one entry of every weight stays: the one with the most votes. The
    density follows from the votes; where clients disagree, it is below that of the schedule.

    Stripelis, Gupta, Ver Steeg, Ambite: Federated Progressive Sparsification (Purge, Merge, Tune)+, 2022 (arXiv
    2204.12430), where clients prune and the server merges by majority. Not as in the paper: the mean is that of the
    values before pruning. The published code keeps an entry from :math:`\lfloor m / 2 \rfloor` votes on, which is no
    majority for odd m.

    Args:
        scope: ``layer``: a client keeps the same density in every weight; ``erk``: densities by size of the weight;
            ``global``: all entries together.
        schedule: density of a client's vote over the rounds; None: constant.
        every: rounds between two votes.

    Raises:
        ConfigurationError: ``scope`` is unknown, or ``every`` is below 1.
    """

    follows_clients = True

    def __init__(self, scope: Scope = "global", schedule: DensitySchedule | None = None, every: int = 1) -> None:
        if every < 1:
            raise ConfigurationError(f"Expected every of at least 1 round for VotedMask but got {every}")
        self.scope, self.schedule, self.every = choice("scope", scope, Scope), schedule or DensitySchedule(), every
        self._scope = self.scope
        self._begun: list[dict[str, Tensor]] = []  # by model
        self._votes: dict[str, Tensor] = {}
        self._density, self._voters, self.open_ended = 1.0, 0, self.schedule.open_ended

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        return {self.sparse[0]: self.whole()}

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        super().begin_round(round, lr)
        self._begun, self._voters = [], 0
        if (round + 1) % self.every == 0:
            self._begun = copies_of(self.models)
            self._votes = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in self.shapes.items()}
            self._density = self.schedule.density(self.sparse[0], round + 1, self.rounds)

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Count the vote of a client: the largest of the values that it trained."""
        if not self._begun:
            return
        values = client_values(self._begun[report.model], update, index)
        held = {name: values[name].abs().cpu().masked_fill(~mask, -1.0) for name, mask in self.mask.items()}
        for name, vote in best(held, self.scope, self._density).items():
            self._votes[name] += vote
        self._voters += 1

    def end_round(self, round: int) -> None:  # noqa: D102
        if self._voters:
            self.hold({self.sparse[0]: {name: self._kept(name, mask) for name, mask in self.mask.items()}})
        self.clear_pruned()

    def _kept(self, name: str, mask: Tensor) -> Tensor:
        kept = mask & (2 * self._votes[name] > self._voters)
        return kept if bool(kept.any()) else largest(self._votes[name].masked_fill(~mask, -1), 1)

    def columns(self) -> dict[str, float]:
        """Return the density of the mask over all weights."""
        return {"parts/density": density_of(self.mask)}
