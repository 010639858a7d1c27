"""The base class of executors, which run clients' jobs on resident nets and return the results in order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from hetfl.local.bench import Bench
from hetfl.piece import Piece
from hetfl.types import Report, Task


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        task: the task.
        report: the client's report.
        vector: flat result whose meaning the job defines, shape (D,); a delta for training.
    """

    task: Task
    report: Report
    vector: Tensor


Job = Callable[[Bench, Task], Result]
"""Does one client's work on a bench, such as training; it travels to worker processes, so pickle must know it."""


Recall = Callable[[Task], Task]
"""Returns a task with its client's state: the penalty's memory, and the personal tensors."""


def recalled(task: Task, recall: Recall | None) -> Task:
    """Return a task with its client's state, if ``recall`` is given."""
    return task if recall is None else recall(task)


class Executor(Piece):
    """Runs jobs for the clients of a cohort.

    The result of a task depends only on the task and the global model. For a given kind of executor, number of threads
    and device, results are bit-identical for any number of workers; between kinds they agree up to rounding.
    """

    def open(self, bench: Bench) -> None:
        """Set the bench: the problem, the data and the global models.

        Args:
            bench: this process's resident nets; they are reloaded whenever a task has a new version of the models.
        """
        self.bench = bench

    @abstractmethod
    def run(self, job: Job, tasks: Sequence[Task], recall: Recall | None = None) -> Iterator[Result]:
        """Yield the results in the order of the tasks.

        Args:
            job: the work of each client.
            tasks: one per client and model.
            recall: adds the client's state to a task, just before the task is run; None: clients have no state here.
        """

    def close(self) -> None:
        """End the processes that the executor started."""

    def share(self, ranks: int) -> None:
        """Prepare for a trainer of several processes, each of which has an executor and a share of the clients.

        Args:
            ranks: number of processes of the trainer.

        Raises:
            ConfigurationError: the executors of the processes could differ.
        """

    @property
    def room(self) -> int:
        """How many numbers a result may have where other processes do the work; 0: this process does it."""
        return 0

    @property
    def words(self) -> str:
        """What runs the clients, for people."""
        return f"{type(self).__name__} executor"

    def describe(self) -> str:
        """Return nothing: a run may be resumed with another executor."""
        return ""


class InProcess(Executor):
    """Runs jobs in one process, a group of clients at a time; each process of ``Workers`` also uses one.

    The groups depend only on the cohort, so that results do not depend on the process that computes them.
    """

    @property
    def most(self) -> int:
        """The largest number of tasks in a group."""
        return 1

    def groups(self, job: Job, tasks: Sequence[Task]) -> list[list[int]]:
        """Return groups of positions in ``tasks`` that are computed together; by default one task per group.

        Raises:
            ConfigurationError: a task's net cannot be trained in this way.
        """
        return [[i] for i in range(len(tasks))]

    @abstractmethod
    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of the tasks of one group."""

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        group_of = {i: group for group in self.groups(job, tasks) for i in group}
        done: dict[int, Result] = {}
        for i, task in enumerate(tasks):
            if i not in done:
                # A group runs as late as possible: at most one group of each level then waits to be yielded.
                group = group_of[i]
                done.update(zip(group, self.work(job, [recalled(tasks[k], recall) for k in group]), strict=True))
            yield replace(done.pop(i), task=task)
