"""An executor that trains each level in its own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetfl.local.bench import Bench
from hetfl.local.executor import InProcess, Job, Result
from hetfl.local.sequential import Sequential
from hetfl.local.stacked import Stacked
from hetfl.types import Task


class ByLevel(InProcess):
    """Trains each level's clients in groups of a size chosen for the level.

    Args:
        clients: by level, the number of clients that :class:`~hetfl.local.Stacked` trains together; 0: the level uses
            :class:`~hetfl.local.Sequential`.
    """

    def __init__(self, clients: Mapping[str, int]) -> None:
        self.clients = dict(clients)
        self._forms: dict[int, InProcess] = {
            number: Stacked(number) if number else Sequential() for number in set(self.clients.values())
        }

    @property
    def most(self) -> int:  # noqa: D102
        return max(form.most for form in self._forms.values())

    def open(self, bench: Bench) -> None:  # noqa: D102
        super().open(bench)
        for form in self._forms.values():
            form.open(bench)

    def groups(self, job: Job, tasks: Sequence[Task]) -> list[list[int]]:  # noqa: D102
        groups = []
        for number, form in self._forms.items():
            members = [i for i, task in enumerate(tasks) if self.clients[task.level] == number]
            groups += [[members[i] for i in group] for group in form.groups(job, [tasks[i] for i in members])]
        return groups

    def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:  # noqa: D102
        return self._forms[self.clients[tasks[0].level]].work(job, tasks)
