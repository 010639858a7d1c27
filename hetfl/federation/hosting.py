"""The nets of this process: the global models, and one resident net per level for all global models."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from hetfl.clustering import NewModel
from hetfl.data import FederatedDataModule
from hetfl.federation.statistics import StaticStatisticsStore
from hetfl.federation.task_parts import TaskParts
from hetfl.local import Executor, LocalProblem
from hetfl.local.bench import Bench
from hetfl.local.jobs import pack_statistics
from hetfl.local.outputs import NormSums
from hetfl.local.resident import ResidentNet
from hetfl.parts import NOBODY
from hetfl.types import Task


class Hosting:
    """Gives executors and evaluations the nets that they work on. Resident nets are not registered with the module.

    Args:
        problem: the local problem.
        task_parts: positions of sub-models in the global models.
        executor: runs the clients.
        statistics: of static batch norm.
    """

    def __init__(
        self, problem: LocalProblem, task_parts: TaskParts, executor: Executor, statistics: StaticStatisticsStore
    ) -> None:
        self.problem, self.task_parts, self.models = problem, task_parts, task_parts.models
        self.executor, self.statistics = executor, statistics
        self.bench: Bench | None = None

    def open(self, data: FederatedDataModule) -> None:
        """Give the executor the resident nets of this process; the global models must be on their device."""
        self._data = data
        if self.bench is None:
            self.bench = Bench(self.problem, data, self.models.tensors)
            self.executor.open(self.bench)
            self.models.notice_edits()
        self.statistics.begin()

    def loaded(self) -> None:
        """Mark loaded statistics as those of the values that were just loaded, and drop nets of older values."""
        self.statistics.begin()
        self.models.notice_edits()
        self.close()

    def close(self) -> None:
        """End the executor's processes, and drop the resident nets and the cached tensors of the global models."""
        self.executor.close()
        self.task_parts.broadcast.forget()
        self.bench = None
        self.models.forget()

    def submodel(self, level: str, model: int = 0) -> nn.Module:
        """Return a level's net with the present values of a global model and, if known, its statistics.

        During a run this is the resident net, which the next client overwrites. Otherwise it is a new net.

        Args:
            level: the level's name.
            model: number of the global model.
        """
        if self.bench is None:
            self.models.notice_edits()
        task = self.evaluated(level, model)
        if self.bench is None:
            resident = ResidentNet(self.models.build(level), self.problem.local.optimizer)
            resident.anchor(self.models.tensors[model], task.part, (model, task.version))
        else:
            resident = self.bench.resident(task)
        resident.start()
        if self.statistics.current:
            self.statistics.load_into(level, resident.net, model)
        return resident.net.eval()

    def evaluated(self, level: str, model: int) -> Task:
        """Return a task of no client, with the part that represents a level."""
        return self.task_parts.of_level(Task(NOBODY, level, self.models.last_round, self.models.mark, model=model))

    def norm_sums(self, model: int) -> dict[str, NormSums]:
        """Return by level the sums of a global model's static norm layers as one vector; empty: they are unknown."""
        known = self.statistics.of_model(model) if self.statistics.current else {}
        return {level: pack_statistics(sums.values()).cpu().numpy() for level, sums in known.items() if sums}

    def renew(self, fresh: Sequence[NewModel], optimizer: Optimizer, round: int, seed: int) -> None:
        """Give clusters new models at the end of a round; see :meth:`GlobalModels.renew`."""
        if any(new.cluster == len(self.models) for new in fresh):
            self.close()
        if fresh:
            self.models.renew(fresh, optimizer, round, seed)
            self.open(self._data)
