"""Chooses the clients that gather static batch norm's statistics before an evaluation."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.federation.hosting import Hosting
from hetfl.federation.probing import Probing
from hetfl.fleet import Fleet
from hetfl.fleet.numbers import IntArray
from hetfl.seeding import generator
from hetfl.types import Task


class Gathering:
    """Asks reachable clients for the sums of every level, unless the statistics of the present models are known.

    Args:
        probing: asks clients that have no cluster yet.
        hosting: has the models and their statistics.
        fleet: the clients' devices.
        seed: of every random choice.
    """

    def __init__(self, probing: Probing, hosting: Hosting, fleet: Fleet, seed: int) -> None:
        self.probing, self.hosting, self.fleet, self.seed = probing, hosting, fleet, seed
        self.models, self.levels = hosting.models, hosting.models.levels
        self.assignment, self.clustering, self.ledger = probing.assignment, probing.clustering, probing.ledger

    def run(self) -> bool:
        """Gather statistics if needed; return whether clients were asked."""
        self.models.notice_edits()
        if self.hosting.statistics.current:
            return False
        round = self.models.last_round
        largest_first = sorted(self.levels, key=lambda level: -self.levels.sizes[level])
        clients = self.probing.clients.within_reach(self.ledger.wait(round))
        probe = self.probing.of_clients(clients, round)
        self.clustering.settle(round, clients.tolist(), probe)
        # One order for all levels: mostly the same clients are asked, and they download the model once.
        order = torch.randperm(len(clients), generator=generator(self.seed, "statistics", self.models.version))
        self.hosting.statistics.gather(
            self.probing.clients,
            {level: self.hosting.submodel(level) for level in largest_first},
            {
                (model, level): self._tasks(level, members, model)
                for model, members in self._by_model(clients[order.numpy()]).items()
                for level in largest_first
            },
            ledger=self.ledger,
            batch_size=self.hosting.problem.local.batch_size,
            informed={} if self.probing.task_parts.broadcast.apart else probe.informed,
            downloads=self.probing.downloads,
        )
        return True

    def models_of(self) -> IntArray:
        """Return the global model of every client, shape (N,)."""
        return np.array(self.clustering.evaluating(), np.int64)

    def _by_model(self, clients: IntArray) -> dict[int, IntArray]:
        """Return by model its clients among ``clients``, in their order; all of ``clients`` if it has none there."""
        model_N = self.models_of()
        members = {int(model): clients[model_N[clients] == model] for model in np.unique(model_N)}
        for model, within_reach in members.items():
            if not len(within_reach):
                rank_zero_warn(f"No client of cluster {model} is within reach: other clients gather its statistics")
        return {model: within_reach if len(within_reach) else clients for model, within_reach in members.items()}

    def _tasks(self, level: str, order: IntArray, model: int) -> list[Task]:
        """Return the tasks of the first clients that can afford a level, or else of those with the largest level."""
        round = self.models.last_round
        names, positions = self.assignment.names, self.assignment.positions(round)
        affording = [number for number, name in enumerate(names) if self.levels.affords(name, level)]
        able = order[np.isin(positions[order], affording)]
        if not len(able):
            largest = max(np.unique(positions[order]).tolist(), key=lambda number: self.levels.sizes[names[number]])
            rank_zero_warn(
                f"No client{self._which(order, model)} can run level {level}: clients of level {names[largest]} gather "
                "its statistics"
            )
            able = order[positions[order] == largest]
        task_parts, mark = self.probing.task_parts, self.models.mark
        asked = np.sort(able[: self.hosting.statistics.most]).tolist()
        return [task_parts.of_level(Task(client, level, round, mark, model=model, statistics=True)) for client in asked]

    def _which(self, order: IntArray, model: int) -> str:
        if self.clustering.several(len(self.models)):
            return f" of cluster {model}" + (" within reach" if not self.fleet.always else "")
        return " within reach" if len(order) < self.assignment.num_clients else ""
