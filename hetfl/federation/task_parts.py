"""The parts of the global models that the clients of tasks hold and send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetfl.data import FederatedDataModule
from hetfl.downlink import Broadcast
from hetfl.global_models import GlobalModels
from hetfl.levels.table import UploadSize
from hetfl.part import Part, only
from hetfl.parts import PartRule
from hetfl.submodel import take
from hetfl.types import NOTHING, Task
from hetfl.wire import encode_part


@dataclass(frozen=True)
class TaskParts:
    """Draws the parts of tasks, in the server's process.

    Attributes:
        rule: makes parts.
        narrowed: returns what a client sends of its part, given the part, level, round and client.
        models: the global models.
        broadcast: what clients are sent of the models.
    """

    rule: PartRule
    narrowed: Callable[[Part, str, int, int], Part]
    models: GlobalModels
    broadcast: Broadcast

    def drawn(self, task: Task) -> Task:
        """Return a task with the client's part, drawn by the rule, and the part of it that the client sends."""
        return self.given(task, self.rule.part(task.level, task.round, task.client))

    def given(self, task: Task, part: Part) -> Task:
        """Return a task with a given part, and the part of it that the client sends.

        Raises:
            ConfigurationError: the part does not pass :meth:`PartRule.check`.
        """
        self.rule.check(part, task.level)
        sent = self.narrowed(part, task.level, task.round, task.client)
        return replace(task, part=part, sent=self._common(sent))

    def _common(self, part: Part) -> Part:
        return only(part, frozenset(part) - self.broadcast.personal) if self.broadcast.personal else part

    def first_values(self, task: Task) -> Tensor | None:
        """Return the trained parameters that a task's client trains from, shape (D,); None: those of the model."""
        values = self.rule.first_values(task.client)
        if values is None:
            return None
        trained = only(task.part.dense, self.models.trained)
        return torch.cat([take(values[name], entry).flatten() for name, entry in trained.items()]).to(self.models.like)

    def kept(self, task: Task) -> Part:
        """Return the personal tensors of a task's part, which stay with its client."""
        personal = self.broadcast.personal - self.models.levels.frozen
        return only(task.part, personal) if personal else NOTHING

    def of_level(self, task: Task) -> Task:
        """Return a task with the part that represents its level; its client sends nothing."""
        return replace(task, part=self.rule.of_level(task.level, task.round))

    def compressed(self, task: Task) -> Part:
        """Return the sent parameters, whose vector is compressed; buffers are sent uncompressed."""
        return only(task.sent, self.models.trained)

    def predicted(self) -> tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, tuple[int, int]] | None]:
        """Return the predicted download of a client of each level, as far as it is known before a run.

        Returns:
            By level: the number of entries of its part; the number of those that the global models do not share; the
            bytes that encode the part's positions; and the bytes of coded values (:meth:`Broadcast.predicted`). All are
            of round 1, because in round 0 a rolling window is still the leading block.
        """
        levels = self.models.levels
        parts = {level: self.rule.of_level(level, 1) for level in levels}
        # Frozen parameters travel once, if ever: they are no part of a usual round.
        trained = {level: self.models.unfrozen(part) for level, part in parts.items()}
        common = {level: self._common(part) for level, part in trained.items()}
        unshared = {level: only(part, frozenset(part) - self.models.shared) for level, part in common.items()}
        part_bytes = {
            level: len(encode_part(part, levels.indices[level], levels.whole)) for level, part in parts.items()
        }
        sizes = {level: part.size for level, part in common.items()}
        unshared_sizes = {level: part.size for level, part in unshared.items()}
        return sizes, unshared_sizes, part_bytes, self.broadcast.predicted(trained)

    def upload_sizes(self, data: FederatedDataModule) -> dict[str, UploadSize]:
        """Return by level the size of an upload.

        It may depend on the client's labels; it is that of the client with the most classes.
        """
        client = max(range(data.num_clients), key=lambda client: int(data.labels(client).sum()))
        tasks = [self.drawn(Task(client, level, 0, 0)) for level in self.models.levels]
        sizes = [(self.compressed(task).size, task.sent.size) for task in tasks]
        return {task.level: UploadSize(held, sent - held) for task, (held, sent) in zip(tasks, sizes, strict=True)}
