"""The resident nets of one process, and what they are trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hetfl.data import ClientData, Samples, Transform
from hetfl.entries import Entries
from hetfl.errors import ConfigurationError
from hetfl.local.channels_last import ChannelsLast
from hetfl.local.method import LocalMethod
from hetfl.local.resident import ResidentNet
from hetfl.local.training import LocalTraining
from hetfl.part import Part, only
from hetfl.seeding import generator
from hetfl.submodel import state_of, take
from hetfl.tree import Tree
from hetfl.types import NOTHING, ClientContext, Task


class ClientSource(Protocol):
    """The interface of a data module that local training uses."""

    @property
    def transform(self) -> Transform:
        """Turns raw inputs into inputs of the net."""
        ...

    def client_data(self, client: int, split: Samples = "train") -> ClientData:
        """Return a client's samples."""
        ...

    def labels(self, client: int) -> Tensor:
        """Return which of the K classes a client's training data has, bool (K,)."""
        ...


@dataclass(frozen=True)
class LocalProblem:
    """The local problem: the nets, the method and the settings of local training.

    Attributes:
        seed: of every random choice.
        local: the settings of local training.
        levels: by name of a level, its leading block.
        build: returns a new net of a level on the global model's device.
        method: defines the loss and the hooks of local training.
        precision_context: returns the trainer's precision as a context, for other processes.
        personal: names of the tensors that stay with their client.
        trains_all: whether clients train entries outside of their masks, too.
        trains_sent: whether clients train only the entries that they send.
    """

    seed: int
    local: LocalTraining
    levels: Mapping[str, Part]
    build: Callable[[str], nn.Module]
    method: LocalMethod
    precision_context: Callable[[], AbstractContextManager[object]]
    personal: frozenset[str] = frozenset()
    trains_all: bool = False
    trains_sent: bool = False


class Bench:
    """The resident nets of one process: one per level, built at first use.

    Args:
        problem: the local problem.
        data: the clients' data.
        models: the tensors of every global model by name.
    """

    def __init__(self, problem: LocalProblem, data: ClientSource, models: Sequence[Mapping[str, Tensor]]) -> None:
        self.problem, self.data, self.models = problem, data, models
        self._residents: dict[str, ResidentNet] = {}
        self._narrow: dict[str, nn.Module] = {}

    def resident(self, task: Task) -> ResidentNet:
        """Return the net of the task's level; its anchor has what the client received, or the global model's values."""
        resident, part, values = self._of_level(task.level), self.part(task), (task.model, task.version)
        if task.received is None:
            resident.anchor(self.models[task.model], part, values)
        else:
            resident.receive(task.received, part, values)
        resident.train_only(self.trained(task))
        return resident

    def trained(self, task: Task) -> Tensor | None:
        """Return which entries of the parameters a client trains, bool (D,), if those that it does not send stay."""
        if not self.problem.trains_sent or not task.sent:
            return None
        part, sent = self.part(task), task.sent

        def made() -> Tensor:
            moving = only(part.dense, frozenset(list(part)[: len(self._of_level(task.level).layout.shapes)]))
            trained_D = torch.zeros(moving.layout.size, dtype=torch.bool)
            entries = Entries(sent, moving)
            entries.put(trained_D, torch.ones(sent.size, dtype=torch.bool))
            return trained_D[: self._of_level(task.level).vector.numel()].to(self.device)

        return part.derived(("trained", sent.key), made)

    def part(self, task: Task) -> Part:
        """Return the part that a task's client holds."""
        return task.part or self.problem.levels[task.level]

    def narrowed(self, task: Task, level: str, inputs_N: Tree) -> Tensor:
        """Return the outputs of a task's net at a smaller level, with the present values of the net.

        Raises:
            ConfigurationError: the level is not a part of the task's level.
        """
        outer, inner = self.problem.levels[task.level], self.problem.levels[level]
        if not outer.covers(inner):
            raise ConfigurationError(f"Expected a level within {task.level} to narrow to but got {level}")
        tensors = state_of(self._of_level(task.level).net)
        narrowed = {name: take(tensors[name], entry) for name, entry in inner.items()}
        if level not in self._narrow:  # not a resident net: its layout hook would try the layout with one more pass
            self._narrow[level] = self.problem.build(level).train()
        outputs: Tensor = functional_call(self._narrow[level], narrowed, (inputs_N,))
        return outputs

    def context(self, task: Task, labels_K: Tensor) -> ClientContext:
        """Return the context of a task's client for the method's hooks."""
        random = generator(self.problem.seed, "method", task.round, task.client)
        begun, narrow = self._of_level(task.level).begun(), partial(self.narrowed, task)
        return ClientContext(task.client, task.round, labels_K, task.level, task.lr, 0, random, begun, narrow)

    def beyond(self, task: Task) -> Tensor | None:
        """Return the client's first values minus the anchor, shape (D,); None: zero.

        They are its personal tensors, and the values that a task has in place of those of the anchor.
        """
        if task.personal is None and task.first_D is None:
            return None
        part, resident = self.part(task), self._of_level(task.level)
        beyond_D = torch.zeros_like(resident.anchor_D)  # without frozen parameters, which are the last ones
        if task.first_D is not None:
            size = len(task.first_D)
            torch.sub(task.first_D.to(beyond_D), resident.anchor_D[:size], out=beyond_D[:size])
            if part.mask_D is not None:
                beyond_D.masked_fill_(~part.mask_D[: len(beyond_D)].to(beyond_D.device), 0.0)
        if task.personal is not None:
            moving = only(part.dense, frozenset(list(part)[: len(resident.layout.shapes)]))
            kept = only(part, self.problem.personal.intersection(moving))
            Entries(kept, moving).put(beyond_D, task.personal.to(beyond_D))
        return beyond_D

    def small(self, task: Task) -> Task:
        """Return a task for another process, without parts that it knows or does not need.

        The process has the leading blocks of all levels, and sends nothing to the server.
        """
        known = self.part(task) is self.problem.levels[task.level]
        sent = task.sent if self.problem.trains_sent else NOTHING
        return replace(task, part=NOTHING if known else task.part, sent=sent, source=NOTHING)

    def size(self, level: str) -> int:
        """Return the number of entries of a level's net, frozen parameters included."""
        return self.problem.levels[level].layout.size

    def cost(self, task: Task) -> int:
        """Return the relative cost of a task's training: entries of its net times samples passed."""
        return self.passes(task) * self.size(task.level)

    def passes(self, task: Task) -> int:
        """Return the number of samples that a task's training passes through the net: samples times epochs."""
        return len(self.data.client_data(task.client).targets) * (task.epochs or self.problem.local.epochs)

    @property
    def capacity(self) -> int:
        """An upper bound of the number of entries of a job's result."""
        tensors, classes = self.models[0].values(), len(self.data.labels(0))
        # Statistics are longer than the parameters by at most their counts, one entry per norm layer. Activations are
        # one entry per class and channel, and the counts of the classes.
        of_channels = classes * (1 + sum(sum(tensor.shape) for tensor in tensors))
        return max(sum(tensor.numel() for tensor in tensors) + len(tensors), of_channels)

    def _of_level(self, level: str) -> ResidentNet:
        if level not in self._residents:
            # Lightning evaluates in inference mode; tensors that are created in it can never be trained.
            with torch.inference_mode(False):
                problem = self.problem
                self._residents[level] = ResidentNet(problem.build(level), problem.local.optimizer, problem.trains_all)
                self._residents[level].net.register_forward_pre_hook(ChannelsLast())
        return self._residents[level]

    @property
    def device(self) -> torch.device:
        """The device of the global model."""
        return next(iter(self.models[0].values())).device
