"""What clients are sent of the models, and what they have already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl import wire
from hetfl.part import Part, only
from hetfl.piece import Facts, Piece
from hetfl.submodel import put, take
from hetfl.types import Task


class Downloads(Piece):
    """Counts the bytes of a client's part: its values, and how it lies in the global model if that is not as before.

    A client keeps the positions and the mask that it was told last, and the frozen parameters that it has been sent of
    a model; neither comes a second time.

    Args:
        blocks: by level, the leading block of every tensor, which a client knows by itself; the largest level's first.
        personal: names of the tensors that clients are not sent.
    """

    for_evaluation: ClassVar[bool] = True

    def __init__(self, blocks: Mapping[str, Part], personal: frozenset[str] = frozenset()) -> None:
        self.blocks, self.personal = blocks, personal
        self._whole = next(iter(blocks.values()))
        self._told: dict[int, bytes] = {}  # by client, the key of the part that it was told of last
        self._has: dict[tuple[int, int], dict[str, Tensor]] = {}  # by client and model, the frozen entries
        self._frozen: Mapping[str, Tensor] = {}

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._frozen = facts.frozen

    def bytes(self, task: Task, less: frozenset[str] = frozenset()) -> int:
        """Return the bytes that a task's client is sent before it can work.

        Args:
            task: with its part.
            less: names of tensors that it has already, or need not have.
        """
        part, block = task.part, self.blocks[task.level]
        less |= self.personal
        values = only(part, frozenset(part) - less) if less else part
        told = part.key in (block.key, self._told.get(task.client))
        coded = 0 if told else part.derived("coded", lambda: len(wire.encode_part(part, block, self._whole)))
        return wire.dense_size(values.size - self._known(task, values)) + coded

    def note(self, task: Task) -> None:
        """Learn that a task's client has been sent its part."""
        if task.part.key != self.blocks[task.level].key:
            self._told[task.client] = task.part.key
        if self._frozen:
            has = self._has.setdefault((task.client, task.model), {})
            for name in self._frozen.keys() & task.part.keys():
                mask = has.setdefault(name, torch.zeros(self._frozen[name].shape, dtype=torch.bool))
                entry = task.part[name]
                put(mask, entry, torch.ones_like(take(mask, entry)))

    def _known(self, task: Task, values: Part) -> int:
        """Return how many entries of a part are frozen ones that the client has already."""
        has = self._has.get((task.client, task.model), {})
        return sum(int(take(has[name], values[name]).count_nonzero()) for name in has.keys() & values.keys())

    def describe(self) -> str:
        """Return nothing: what was sent is no setting."""
        return ""

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "told": {client: key.hex() for client, key in self._told.items()},
            "frozen": [[client, model, dict(has)] for (client, model), has in self._has.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._told = {client: bytes.fromhex(key) for client, key in state["told"].items()}
        self._has = {(client, model): dict(has) for client, model, has in state["frozen"]}
