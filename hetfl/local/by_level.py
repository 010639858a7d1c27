"""Every level in its own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetfl.local.executor import Bench, InProcess, Job, LocalResult, LocalTask
from hetfl.local.sequential import Sequential
from hetfl.local.stacked import Stacked


class ByLevel(InProcess):
    """Trains each level's clients so many at a time.

    Args:
        clients: by level, how many clients :class:`~hetfl.local.Stacked` trains together; 0:
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

    def setup(self, bench: Bench) -> None:  # noqa: D102
        super().setup(bench)
        for form in self._forms.values():
            form.setup(bench)

    def groups(self, job: Job, tasks: Sequence[LocalTask]) -> list[list[int]]:  # noqa: D102
        found = []
        for number, form in self._forms.items():
            own = [i for i, task in enumerate(tasks) if self.clients[task.level] == number]
            found += [[own[i] for i in group] for group in form.groups(job, [tasks[i] for i in own])]
        return found

    def work(self, job: Job, tasks: Sequence[LocalTask]) -> list[LocalResult]:  # noqa: D102
        return self._forms[self.clients[tasks[0].level]].work(job, tasks)
