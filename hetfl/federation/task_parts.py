"""What the clients of tasks hold of the global models, and what they send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hetfl.data import FederatedDataModule
from hetfl.federation.models import GlobalModels
from hetfl.levels.table import UploadSize
from hetfl.part import Part, only
from hetfl.parts import PartRule
from hetfl.types import NOTHING, Task
from hetfl.wire import encode_part


@dataclass(frozen=True)
class TaskParts:
    """Draws the parts of tasks, in the server's process.

    Attributes:
        rule: makes parts.
        narrowed: returns what a client sends of its part, given the part, level, round and client.
        models: the global models.
        personal: names of the tensors that stay with their client.
    """

    rule: PartRule
    narrowed: Callable[[Part, str, int, int], Part]
    models: GlobalModels
    personal: frozenset[str] = frozenset()

    def drawn(self, task: Task) -> Task:
        """Return a task with its client's part, and what the client sends of it."""
        return self.given(task, self.rule.part(task.level, task.round, task.client))

    def given(self, task: Task, part: Part) -> Task:
        """Return a task with a part that passes :meth:`PartRule.check`, and what the client sends of it."""
        self.rule.check(part, task.level)
        sent = self.narrowed(part, task.level, task.round, task.client)
        return replace(task, part=part, sent=self._common(sent))

    def _common(self, part: Part) -> Part:
        return only(part, frozenset(part) - self.personal) if self.personal else part

    def kept(self, task: Task) -> Part:
        """Return what of a task's part stays with its client."""
        return only(task.part, self.personal) if self.personal else NOTHING

    def of_level(self, task: Task) -> Task:
        """Return a task with the part that stands for its level, and sends nothing."""
        return replace(task, part=self.rule.of_level(task.level, task.round))

    def held(self, task: Task) -> Part:
        """Return where a client's compressed vector lies: what it sends without buffers, which travel exactly."""
        return only(task.sent, self.models.trained)

    def predicted(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        """Return what a client of each level is sent, as far as it can be known before a run.

        Returns:
            By level: entries of its part; those of them that the global models do not share; and the bytes that tell
            how the part lies. They are those of round 1, as a moving window begins as the leading block.
        """
        levels = self.models.levels
        whole = {level: self.rule.of_level(level, 1) for level in levels}
        sent = {level: self._common(part) for level, part in whole.items()}
        apart = {level: only(part, frozenset(part) - self.models.shared) for level, part in sent.items()}
        told = {n: len(encode_part(p, levels.indices[n], levels.indices[levels.largest])) for n, p in whole.items()}
        return {n: part.size for n, part in sent.items()}, {n: part.size for n, part in apart.items()}, told

    def upload_sizes(self, data: FederatedDataModule) -> dict[str, UploadSize]:
        """Return by level what a client sends.

        That may depend on the client's labels: the one with most classes stands for all.
        """
        client = max(range(data.num_clients), key=lambda client: int(data.labels(client).sum()))
        tasks = [self.drawn(Task(client, level, 0, 0)) for level in self.models.levels]
        sizes = [(self.held(task).size, task.sent.size) for task in tasks]
        return {task.level: UploadSize(held, sent - held) for task, (held, sent) in zip(tasks, sizes, strict=True)}
