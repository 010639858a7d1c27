"""The messages in which clients download parts of the global models; each part of a version is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from hetfl import wire
from hetfl.downlink.downlink import Downlink
from hetfl.entries import Entries, gather_flat
from hetfl.errors import ConfigurationError
from hetfl.local import Personal
from hetfl.part import Part, only
from hetfl.piece import Piece
from hetfl.seeding import derive
from hetfl.types import SHARED, Received, Task

KEPT = 32
"""Number of parts whose messages and values are kept. Others are encoded again, which gives the same bytes."""


class Models(Protocol):
    """The interface of the global models that a broadcast needs."""

    version: int

    @property
    def tensors(self) -> Sequence[Mapping[str, Tensor]]:
        """Every model's parameters and float buffers by name."""
        ...

    @property
    def shared(self) -> frozenset[str]:
        """Names of the tensors that all models share."""
        ...

    @property
    def trained(self) -> frozenset[str]:
        """Names of the tensors that are trained."""
        ...

    @property
    def like(self) -> Tensor:
        """A tensor with the models' dtype and device."""
        ...

    @property
    def mark(self) -> int:
        """A number that grows whenever the models' values change."""
        ...


@dataclass(frozen=True)
class Sent:
    """The messages of a part of a model.

    Attributes:
        messages: the bytes, by the numbers of :meth:`Broadcast.groups`.
        values_D: the decoded values of all entries of the part's index, shape (D,); 0 where the mask holds nothing.
    """

    messages: Mapping[int, bytes]
    values_D: Tensor


class Broadcast(Piece):
    """Encodes parts of the global models for clients, and decodes the values that clients get.

    Args:
        downlink: how values are coded; None: they are sent as they are.
        models: the global models.
        personal: the tensors that stay with clients and are not sent.
        seed: of every random choice.

    Attributes:
        personal: names of the tensors that are not sent.
    """

    def __init__(self, downlink: Downlink | None, models: Models, personal: Personal, seed: int) -> None:
        self.downlink, self.models, self.seed = downlink, models, seed
        self.personal = personal.among(models.tensors[0])
        self._sent: OrderedDict[tuple[int, bytes, bool], Sent] = OrderedDict()
        self._present = (-1, -1)  # mark of the models, round

    @property
    def codes(self) -> bool:
        """Whether clients get other values than those of the global model."""
        return self.downlink is not None

    @property
    def apart(self) -> bool:
        """Whether the values for statistics have a quantiser of their own."""
        return self.downlink is not None and self.downlink.statistics is not None

    def given(self, task: Task) -> Task:
        """Return a task with the decoded values that its client begins with; unchanged without a downlink."""
        return receiving(task, self.sent(task, task.source or task.part).values_D) if self.codes else task

    def size(self, task: Task, values: Part, known: int) -> int:
        """Return the bytes of the values that a task's client is sent.

        Args:
            task: with its part.
            values: the tensors of the part that are sent; the others are uncoded, or are shared by all models.
            known: number of these entries that the client already has; they are uncoded.
        """
        if not self.codes:
            return wire.dense_size(values.size - known, itemsize=self._itemsize)
        total, messages = 0, self.sent(task, task.part).messages
        for number, group in self.groups(task.model, task.part):
            if travels := only(values, frozenset(group) & frozenset(values)):
                total += len(messages[number]) - self._itemsize * (group.size - travels.size)
        return total - self._itemsize * known

    def predicted(self, parts: Mapping[str, Part]) -> dict[str, tuple[int, int]] | None:
        """Return by level the bytes of its part's values, and without tensors that all models share.

        Args:
            parts: by level.

        Returns:
            None without a downlink.
        """
        if not self.codes:
            return None
        sizes = {}
        for level, part in parts.items():
            lengths = {number: self._length(group) for number, group in self.groups(0, part)}
            sizes[level] = (sum(lengths.values()), lengths.get(0, 0))
        return sizes

    def groups(self, model: int, part: Part) -> Iterator[tuple[int, Part]]:
        """Yield the tensors of a part that all models share, and the others: each group is one message.

        Yields:
            The model's number, or :data:`hetfl.types.SHARED`, and the group, which is not empty.
        """
        for number, names in ((SHARED, self.models.shared), (model, frozenset(part) - self.models.shared)):
            if group := only(part, names & frozenset(part)):
                yield number, group

    def sent(self, task: Task, part: Part) -> Sent:
        """Return the messages of a part of a task's model in the task's round.

        Raises:
            ConfigurationError: the model is not finite.
        """
        if self._present != (self.models.mark, task.round):
            self.forget()
            self._present = (self.models.mark, task.round)
        key = (task.model, part.key, task.statistics and self.apart)
        if key not in self._sent:
            with torch.inference_mode(False), torch.no_grad():
                groups = self.groups(task.model, part)
                messages = {number: self._encoded(task, number, group) for number, group in groups}
                self._sent[key] = Sent(messages, self.read(task, part, messages))
            if len(self._sent) > KEPT:
                self._sent.popitem(last=False)
        self._sent.move_to_end(key)
        return self._sent[key]

    def read(self, task: Task, part: Part, messages: Mapping[int, bytes]) -> Tensor:
        """Decode the messages of a part: the values of all entries of its index, shape (D,).

        Raises:
            MalformedPayload: a message does not fit the part, the model or the round.
        """
        values_D = torch.zeros(part.layout.size, dtype=self._dtype)
        views = part.layout.views(values_D)
        for number, group in self.groups(task.model, part):
            coded, rest = self._halves(group)
            known = wire.Expected(
                task.round, number % 2**64, coded.size, rest.size, dtype=self._dtype, layout=coded.held
            )
            submodel = wire.decode_submodel(messages[number], known)
            for half, entries in ((coded, submodel.values_D), (rest, submodel.exact)):
                for name, values in half.layout.views(half.spread(entries)).items():
                    views[name].copy_(values)
        return values_D.to(self.models.like)

    def describe(self) -> str:
        """Return how values are coded."""
        return "float32" if self.downlink is None else self.downlink.describe()

    @property
    def words(self) -> str:
        """How values are coded, in words."""
        return "float32" if self.downlink is None else self.downlink.words

    def forget(self) -> None:
        """Delete all kept messages, because the models have changed."""
        self._sent.clear()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.models.like.dtype == torch.float64 else torch.float32

    @property
    def _itemsize(self) -> int:
        return self._dtype.itemsize

    def _halves(self, group: Part) -> tuple[Part, Part]:
        """Return the coded tensors of a group, and the uncoded ones."""
        assert self.downlink is not None
        coded = (self.downlink.coded(group) & self.models.trained) - self.personal
        return only(group, coded), only(group, frozenset(group) - coded)

    def _encoded(self, task: Task, number: int, group: Part) -> bytes:
        tensors = self.models.tensors[task.model]
        coded, exact = (self._gathered(tensors, half) for half in self._halves(group))
        if not all(bool(torch.isfinite(values).all()) for values in (coded, exact)):
            raise ConfigurationError(
                f"Expected a finite global model to send in round {task.round + 1} but got NaN or Inf (training "
                "diverged?): try a smaller learning rate or gradient_clip"
            )
        return self._message(group, coded, exact, task.round, number, task.statistics and self.apart)

    def _gathered(self, tensors: Mapping[str, Tensor], part: Part) -> Tensor:
        values = gather_flat(tensors, part) if part else self.models.like.new_empty(0)
        return values.detach().to("cpu", self._dtype)

    def _message(self, group: Part, coded_D: Tensor, exact: Tensor, round: int, number: int, statistics: bool) -> bytes:
        assert self.downlink is not None
        # The seed depends on the version: an evaluation and the next round send the same values of a model.
        purpose = "downlink statistics" if statistics else "downlink"
        seed = derive(self.seed, purpose, self.models.version, number, group.key.hex())
        layout, model = self._halves(group)[0].held, number % 2**64
        return self.downlink.encode(coded_D, layout, exact, round=round, model=model, seed=seed, statistics=statistics)

    def _length(self, group: Part) -> int:
        """Return the bytes of a group's message without personal tensors; they do not depend on the values."""
        return group.derived(("length", self.describe()), lambda: self._length_of(group))

    def _length_of(self, group: Part) -> int:
        coded, exact = (torch.zeros(half.size, dtype=self._dtype) for half in self._halves(group))
        own = only(group, self.personal & frozenset(group)).size
        return len(self._message(group, coded, exact, 0, 0, statistics=False)) - self._itemsize * own


def receiving(task: Task, values_D: Tensor) -> Task:
    """Return a task whose client begins with decoded values of its part, or of the larger part that it downloaded."""
    part, source = task.part, task.source or task.part
    if source.key != part.key:
        entries = source.derived(("entries", part.key), lambda: Entries(part.dense, source.dense))
        values_D = entries.take(values_D)
    return replace(task, received=Received(values_D, source.key + bytes([task.statistics])))
