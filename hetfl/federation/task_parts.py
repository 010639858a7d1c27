"""What the clients of tasks hold of the global models, and what they send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
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
        """Return a task with its client's part, and what the client sends of it.

        Raises:
            ConfigurationError: the part does not have the shapes of the level's net.
        """
        return self.given(task, self.rule.part(task.level, task.round, task.client))

    def given(self, task: Task, part: Part) -> Task:
        """Return a task with a part, and what the client sends of it."""
        shapes = self.models.levels.indices[task.level].layout.shapes
        if part.derived("shapes", lambda: part.layout.shapes) != shapes:
            raise ConfigurationError(
                f"Expected parts of the shapes of the net at level {task.level} from {type(self.rule).__name__} but "
                f"got others at {_differing(part, self.models.levels.indices[task.level])}"
            )
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

    def sizes(self, round: int) -> dict[str, int]:
        """Return by level the number of entries of its part."""
        return {level: self._common(self.rule.of_level(level, round)).size for level in self.models.levels}

    def sizes_apart(self, round: int) -> dict[str, int]:
        """Return by level the number of entries of its part that the global models do not share."""
        parts = {level: self._common(self.rule.of_level(level, round)) for level in self.models.levels}
        return {level: only(part, frozenset(part) - self.models.shared).size for level, part in parts.items()}

    def told_bytes(self) -> dict[str, int]:
        """Return by level the bytes that tell a client how its part lies, in round 1."""
        parts = {level: self.rule.of_level(level, 1) for level in self.models.levels}
        return {level: len(encode_part(part, self.models.levels.indices[level])) for level, part in parts.items()}

    def upload_sizes(self, data: FederatedDataModule) -> dict[str, UploadSize]:
        """Return by level what a client sends.

        That may depend on the client's labels: the one with most classes stands for all.
        """
        client = max(range(data.num_clients), key=lambda client: int(data.labels(client).sum()))
        tasks = [self.drawn(Task(client, level, 0, 0)) for level in self.models.levels]
        sizes = [(self.held(task).size, task.sent.size) for task in tasks]
        return {task.level: UploadSize(held, sent - held) for task, (held, sent) in zip(tasks, sizes, strict=True)}


def _differing(part: Part, block: Part) -> str:
    """Return the first name at which two parts have other shapes."""
    one, two = part.layout.shapes, block.layout.shapes
    return next((repr(name) for name in [*one, *two] if one.get(name) != two.get(name)), "the order of tensors")
