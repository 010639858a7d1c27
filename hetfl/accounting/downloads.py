"""The bytes that clients download, and what they already have."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hetfl import wire
from hetfl.arguments import choice
from hetfl.layout import IndexEntry, entry_shape
from hetfl.part import Part, only
from hetfl.piece import Facts, Piece
from hetfl.submodel import put, take
from hetfl.types import Task

NONE = torch.empty(0, dtype=torch.bool)
"""Stands for a frozen parameter of which a client has no entry."""

Base = Literal["download", "preinstalled"]
"""How clients get frozen parameters: each downloads them once, or has them before the run."""

Size = Callable[[Task, Part, int], int]
"""Returns the bytes of the values of a part that a task's client is sent, some of whose entries it has already."""


def dense_size(task: Task, values: Part, known: int) -> int:
    """Return the bytes of values that travel as float32."""
    return wire.dense_size(values.size - known)


class Downloads(Piece):
    """Counts the bytes of a client's part: its values, and its positions in the global model if they are new.

    A client keeps the last positions and mask that it was sent, and the frozen parameters of each model that it was
    sent; neither is sent again.

    Args:
        blocks: by level, the leading block of every tensor, which a client need not be sent; the largest level's first.
        personal: names of the personal tensors, which are not sent.
        size: returns the bytes of values.
        whole: all of every tensor of the global model; None: the largest level's block.
        base: ``preinstalled``: clients have the frozen parameters from the start, and are never sent any.
    """

    for_evaluation: ClassVar[bool] = True

    def __init__(
        self,
        blocks: Mapping[str, Part],
        personal: frozenset[str] = frozenset(),
        size: Size = dense_size,
        whole: Part | None = None,
        base: Base = "download",
    ) -> None:
        self.blocks, self.personal, self.size = blocks, personal, size
        self.base = choice("base", base, Base)
        self._whole = whole or next(iter(blocks.values()))
        self._positions: dict[int, bytes] = {}  # by client, the key of the part whose positions it was sent last
        # By client, model and name, which entries of a frozen parameter the client has; None: all of them.
        self._frozen_held: dict[tuple[int, int], dict[str, Tensor | None]] = {}
        self._frozen: Mapping[str, Tensor] = {}
        self._digest = ""  # of the frozen parameters before the run

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._frozen = facts.frozen
        if self.preinstalled and not self._digest:
            self._digest = digest_of(facts.frozen)

    def bytes(self, task: Task, less: frozenset[str] = frozenset()) -> int:
        """Return the bytes that a task's client must download before it works.

        Args:
            task: with its part.
            less: names of tensors that the client already has, or does not need.
        """
        part, block = task.part, self.blocks[task.level]
        less |= self.personal
        values = only(part, frozenset(part) - less) if less else part
        known = part.key in (block.key, self._positions.get(task.client))
        coded = 0 if known else part.derived("coded", lambda: len(wire.encode_part(part, block, self._whole)))
        return self.size(task, values, self._known(task, values)) + coded

    def note(self, task: Task) -> None:
        """Record that a task's client has downloaded its part."""
        if task.part.key != self.blocks[task.level].key:
            self._positions[task.client] = task.part.key
        if self._frozen and not self.preinstalled:
            held = self._frozen_held.setdefault((task.client, task.model), {})
            for name in self._frozen.keys() & task.part.keys():
                held[name] = self._with(held.get(name, NONE), name, task.part[name])

    def _with(self, held: Tensor | None, name: str, entry: IndexEntry) -> Tensor | None:
        """Return which entries of a frozen parameter a client has that had some and is sent further ones."""
        shape = self._frozen[name].shape
        if held is None or entry_shape(entry) == shape:  # no mask: bases are large, and clients many
            return None
        mask = torch.zeros(shape, dtype=torch.bool) if held is NONE else held
        put(mask, entry, torch.ones_like(take(mask, entry)))
        return None if bool(mask.all()) else mask

    def _known(self, task: Task, values: Part) -> int:
        """Return the number of frozen entries of a part that the client already has."""
        if self.preinstalled:
            return only(values, frozenset(self._frozen).intersection(values)).size
        held = self._frozen_held.get((task.client, task.model), {})
        sizes, known = dict(zip(values, values.layout.sizes, strict=True)), 0
        for name in held.keys() & values.keys():
            mask = held[name]
            known += sizes[name] if mask is None else int(take(mask, values[name]).count_nonzero())
        return known

    @property
    def preinstalled(self) -> bool:
        """Whether clients have the frozen parameters before the run."""
        return self.base == "preinstalled"

    def describe(self) -> str:
        """Return a digest of a preinstalled base, which server and nodes compare; empty without one."""
        return f"preinstalled base {self._digest}" if self.preinstalled else ""

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {
            "told": {client: key.hex() for client, key in self._positions.items()},
            "frozen": [[client, model, dict(held)] for (client, model), held in self._frozen_held.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._positions = {client: bytes.fromhex(key) for client, key in state["told"].items()}
        self._frozen_held = {(client, model): dict(held) for client, model, held in state["frozen"]}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the names, shapes, types and values of tensors."""
    content = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def with_sources(tasks: Iterable[Task], informed: Mapping[tuple[int, int], Part]) -> list[Task]:
    """Return tasks, each with the larger part in which its client finds its own, if it was sent one before.

    Args:
        tasks: in the order in which they are sent.
        informed: by client and model, the part of which the client has the present values already.
    """
    has = defaultdict[tuple[int, int], list[Part]](list, {key: [part] for key, part in informed.items()})
    found = []
    for task in tasks:
        source = next((larger for larger in has[task.key] if larger.covers(task.part)), None)
        if source is None:
            has[task.key].append(task.part)
        found.append(task if source is None else replace(task, source=source))
    return found
