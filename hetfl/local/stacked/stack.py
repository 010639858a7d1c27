"""Local training of several clients of one level together, with a row of a matrix for each client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Layout
from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import report_of, training_batches
from hetfl.local.stacked.batched import BatchedNet, batched
from hetfl.local.stacked.losses import loss_is_joint
from hetfl.local.stacked.sgd import RowSGD
from hetfl.part import Part
from hetfl.seeding import generator
from hetfl.submodel import parameters_of
from hetfl.tree import Tree, mapped, moved, on_device, shapes, stacked, taken
from hetfl.types import ClientContext, CohortContext, Task

SAMPLES = 4
"""Samples on which a net for several clients is compared with the net of one."""


class Stack:
    """One level's clients on a bench: their parameters, gradients and momenta are matrices with one row per client.

    Each client computes what :func:`hetfl.local.jobs.train` computes, from the same random numbers. Clients whose next
    batches have the same shape step together; all other clients wait. Entries of a row are in the memory layout of the
    batched net; entries of tasks and results are in the order of indices.

    Args:
        bench: the resident nets.
        task: a task of the level.

    Raises:
        ConfigurationError: the method, the net or the optimizer does not work for several clients at once.
    """

    def __init__(self, bench: Bench, task: Task) -> None:
        self.bench = bench
        if overridden := bench.problem.method.steps_overridden():
            raise ConfigurationError(
                f"Expected a method that overrides loss alone for executor Stacked but got "
                f"{type(bench.problem.method).__name__}.{overridden[0]}: use Sequential or Workers"
            )
        problem, data = bench.problem, bench.data.client_data(task.client)
        self.sgd = RowSGD(problem.local.optimizer)
        samples = torch.arange(SAMPLES) % len(data.targets)
        inputs_N = moved(bench.data.transform.eval(taken(data.inputs, samples)), bench.device)
        targets_N = data.targets[samples]
        who = f"the net at level {task.level}"
        self.net: BatchedNet = batched(lambda: problem.build(task.level), inputs_N, who)
        resident = bench.resident(task)
        self.layout, self.row_layout = resident.layout, self.net.layout(resident.layout.shapes)
        self.trained = Layout.of(parameters_of(resident.net))
        self.trained_row_layout = self.net.layout(self.trained.shapes)
        self.net.fix(resident.frozen)
        tensors = self._tensors(resident.anchor_D.expand(2, -1))
        with torch.no_grad():
            inputs_SN = mapped(lambda leaf: leaf.expand(2, *leaf.shape), inputs_N)
            shape = self.net(tensors, inputs_SN).shape
        anchor = {name: tensor[0] for name, tensor in tensors.items()} | dict(resident.frozen)
        self.joint = loss_is_joint(problem, shape, targets_N, task, bench.data.labels(task.client), anchor)
        self._buffers = resident.anchor_D.new_empty(2, 0, self.layout.size)

    def train(self, tasks: Sequence[Task]) -> list[Result]:
        """Return the results of clients' local training; the tasks have the same model, level, round and γ."""
        self._start(tasks)
        streams = [training_batches(self.bench, task) for task in tasks]
        heads = [next(stream, None) for stream in streams]
        counted, passes, steps = [0.0] * len(tasks), [0] * len(tasks), [0] * len(tasks)
        objective = self.bench.problem.method.objective
        while members := most_alike(heads):
            batches = [head for i in members if (head := heads[i]) is not None]
            weights = [objective.weight(targets) for _, targets in batches]
            inputs_SN, targets_SN = mapped(self._sent, stacked(batches))
            self._step(tasks, members, inputs_SN, targets_SN, weights, steps)
            for i, weight in zip(members, weights, strict=True):
                passes[i] += targets_SN.shape[1]
                counted[i] += weight
                steps[i] += 1
                heads[i] = next(streams[i], None)
        losses = [total / (weight or 1.0) for total, weight in zip(self.totals_S.tolist(), counted, strict=True)]
        # A separate vector for each result: a view would keep the whole matrix in memory.
        return [
            Result(
                task,
                report_of(self.bench, task, loss, passed, taken),
                self.layout.reordered(row_D - anchor_D, self.row_layout),
            )
            for task, row_D, anchor_D, loss, passed, taken in zip(
                tasks, self.theta_SD, self.anchor_SD.expand_as(self.theta_SD), losses, passes, steps, strict=True
            )
        ]

    @torch.no_grad()
    def _start(self, tasks: Sequence[Task]) -> None:
        """Set all rows to the global model plus personal differences, and reset the optimizers."""
        device = self.bench.device
        parts = [self.bench.part(task) for task in tasks]
        distinct = 1 if len({part.key for part in parts}) == 1 else len(tasks)
        # One row if all clients hold the same part. Each is copied before the resident net loads the next part.
        self.anchor_SD = torch.empty(distinct, self.layout.size, dtype=self._buffers.dtype, device=device)
        frozen, beyond = list[dict[str, Tensor]](), list[Tensor | None]()
        for number, task in enumerate(tasks):
            if number < distinct:
                resident = self.bench.resident(task)
                self.anchor_SD[number].copy_(self.row_layout.reordered(resident.anchor_D, self.layout))
                frozen.append({name: parameter.detach() for name, parameter in resident.frozen.items()})
            beyond.append(self.bench.beyond(task))  # the resident net still has this task's anchor
        self._fix(frozen)
        self.mask_SD, self.trained_SD = self._masks(parts), self._trained(tasks)
        if self._buffers.shape[1] < len(tasks):
            self._buffers = self.anchor_SD.new_empty(2, len(tasks), self.layout.size)
        self.theta_SD, momentum_SD = self._buffers[:, : len(tasks)]
        self.theta_SD.copy_(self.anchor_SD)
        self.begun_SD = self.anchor_SD
        if any(beyond_D is not None for beyond_D in beyond):
            for row_D, beyond_D in zip(self.theta_SD, beyond, strict=True):
                if beyond_D is not None:
                    row_D += self.row_layout.reordered(beyond_D, self.layout)
            self.begun_SD = self.theta_SD.clone()
        self.momentum_SD = momentum_SD[:, : self.trained.size].zero_()
        self.moved = [False] * len(tasks)
        self.totals_S = torch.zeros(len(tasks), device=device)
        self.labels_SK = self._sent(torch.stack([self.bench.data.labels(task.client) for task in tasks]))
        self.contexts = [] if self.joint else self._contexts(tasks, frozen)
        self.memory_SD: Tensor | None = None
        if any(task.memory_D is not None for task in tasks):
            none_D = torch.zeros_like(self.anchor_SD[0, : self.trained.size])
            memory_SD = torch.stack([none_D if task.memory_D is None else task.memory_D for task in tasks])
            self.memory_SD = self.trained_row_layout.reordered(memory_SD, self.trained)

    def _contexts(self, tasks: Sequence[Task], frozen: Sequence[dict[str, Tensor]]) -> list[ClientContext]:
        """Return the context of each client's loss, at its first step."""
        tensors, seed = self._tensors(self.begun_SD), self.bench.problem.seed
        anchors = [{name: tensor[i % len(tensor)] for name, tensor in tensors.items()} for i in range(len(tasks))]
        return [
            ClientContext(
                task.client,
                task.round,
                labels_K,
                task.level,
                task.lr,
                generator=generator(seed, "method", task.round, task.client),
                anchor={**anchors[i], **frozen[i % len(frozen)]},
            )
            for i, (task, labels_K) in enumerate(zip(tasks, self.labels_SK, strict=True))
        ]

    def _fix(self, frozen: Sequence[dict[str, Tensor]]) -> None:
        """Set the frozen parameters: once if all clients have the same, or else a row for each client."""
        first, self.fixed_S = frozen[0], dict[str, Tensor]()
        if all(torch.equal(each[name], first[name]) for each in frozen[1:] for name in first):
            self.net.fix(first)
        else:
            self.fixed_S = {name: torch.stack([each[name] for each in frozen]) for name in first}

    def _masks(self, parts: Sequence[Part]) -> Tensor | None:
        """Return the entries that each client trains, bool (S, D); None if all clients train all entries."""
        if self.bench.problem.trains_all or all(part.mask_D is None for part in parts):
            return None
        all_D = torch.ones(self.trained.size, dtype=torch.bool)
        masks = [all_D if part.mask_D is None else part.mask_D[: self.trained.size].cpu() for part in parts]
        return self._sent(self.trained_row_layout.reordered(torch.stack(masks), self.trained))

    def _trained(self, tasks: Sequence[Task]) -> Tensor | None:
        """Return the entries that each client may change, bool (S, D); None: all entries."""
        trained = [self.bench.trained(task) for task in tasks]
        if all(each is None for each in trained):
            return None
        all_D = torch.ones(self.trained.size, dtype=torch.bool, device=self.bench.device)
        rows_SD = torch.stack([all_D if each is None else each for each in trained])
        return self.trained_row_layout.reordered(rows_SD, self.trained)

    def _sent(self, tensor: Tensor) -> Tensor:
        return on_device(tensor, self.bench.device)

    def _step(
        self,
        tasks: Sequence[Task],
        members: list[int],
        inputs_SN: Tree,
        targets_SN: Tensor,
        weights: list[float],
        steps: Sequence[int],
    ) -> None:
        rows = None if len(members) == len(tasks) else self._sent(torch.tensor(members))
        theta_SD = self.theta_SD if rows is None else self.theta_SD[rows]
        tensors = self._tensors(theta_SD)
        fixed_S = self.fixed_S if rows is None else {name: each[rows] for name, each in self.fixed_S.items()}
        leaves = [tensors[name].requires_grad_() for name in self.trained.shapes]
        outputs_SN = self.net({**tensors, **fixed_S}, inputs_SN)
        losses_S = self._losses(outputs_SN, targets_SN, tasks[0], members, rows, steps)
        grads = torch.autograd.grad(losses_S.sum(), leaves, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            shapes = self.trained.shapes.values()
            flat_grads = [self.row_layout.flat(grad, shape) for grad, shape in zip(grads, shapes, strict=True)]
            grad_SD = torch.cat(flat_grads, dim=1)
            self._move(tasks[0].lr, members, rows, theta_SD, grad_SD)
            alike = len(set(weights)) == 1  # then no tensor of weights is sent to the device
            loss_sums_S = losses_S.detach() * (weights[0] if alike else self._sent(torch.tensor(weights)))
            if rows is None:
                self.totals_S += loss_sums_S
            else:
                self.totals_S.index_add_(0, rows, loss_sums_S.to(self.totals_S))

    def _tensors(self, theta_SD: Tensor) -> dict[str, Tensor]:
        """Return the tensors of all rows by name, shape (S, ...), contiguous in the net's layout."""
        # Views would have gaps between rows. For such weights with one channel, torch's grouped convolution returns
        # zero gradients.
        parts = theta_SD.split(self.row_layout.sizes, dim=1)
        return {
            name: self.row_layout.shaped(part.contiguous(), shape)
            for (name, shape), part in zip(self.row_layout.shapes.items(), parts, strict=True)
        }

    def _losses(
        self,
        outputs_SN: Tensor,
        targets_SN: Tensor,
        task: Task,
        members: Sequence[int],
        rows: Tensor | None,
        steps: Sequence[int],
    ) -> Tensor:
        """Return every client's loss, shape (S,)."""
        loss = self.bench.problem.method.loss
        if self.joint:
            labels_SK = self.labels_SK if rows is None else self.labels_SK[rows]
            return loss(outputs_SN, targets_SN, CohortContext(task.round, labels_SK, task.level, task.lr))
        contexts = [replace(self.contexts[i], step=steps[i]) for i in members]
        return torch.stack([loss(o, t, ctx) for o, t, ctx in zip(outputs_SN, targets_SN, contexts, strict=True)])

    def _move(self, lr: float, members: list[int], rows: Tensor | None, theta_SD: Tensor, grad_SD: Tensor) -> None:
        """Take a step of the rows in ``theta_SD``; changes ``grad_SD`` in place."""
        local = self.bench.problem.local
        trained_SD = theta_SD[:, : self.trained.size]
        memory_SD = self.memory_SD if self.memory_SD is None or rows is None else self.memory_SD[rows]
        begun_SD = self.begun_SD if rows is None or len(self.begun_SD) == 1 else self.begun_SD[rows]
        begun_SD, layout = begun_SD[:, : self.trained.size], self.trained_row_layout
        local.regulariser.add_gradient(grad_SD, trained_SD, begun_SD, memory_SD, layout)
        if self.mask_SD is not None:
            grad_SD.mul_(self.mask_SD if rows is None else self.mask_SD[rows])
        may_SD = self.trained_SD if self.trained_SD is None or rows is None else self.trained_SD[rows]
        if may_SD is not None:
            grad_SD.mul_(may_SD)
        if local.gradient_clip is not None:
            norms_S1 = torch.linalg.vector_norm(grad_SD, dim=1, keepdim=True)
            # The formula of torch.nn.utils.clip_grad_norm_, per client.
            grad_SD.mul_((local.gradient_clip / (norms_S1 + 1e-6)).clamp(max=1.0))
        momentum_SD = self.momentum_SD if rows is None else self.momentum_SD[rows]
        first_S1 = None
        if not all(self.moved[i] for i in members):
            first_S1 = self._sent(torch.tensor([[0.0 if self.moved[i] else 1.0] for i in members]))
        trained_SD.sub_(self.sgd.direction(grad_SD, trained_SD, momentum_SD, first_S1), alpha=lr)
        local.regulariser.after_step(trained_SD, lr, layout)
        if may_SD is not None:
            trained_SD.copy_(torch.where(may_SD, trained_SD, begun_SD))
        if rows is not None:
            self.theta_SD.index_copy_(0, rows, theta_SD)
            self.momentum_SD.index_copy_(0, rows, momentum_SD)
        for i in members:
            self.moved[i] = True


def most_alike(heads: Sequence[tuple[Tree, Tensor] | None]) -> list[int]:
    """Return the positions of the clients whose next batch has the most common shape.

    Args:
        heads: the next batch of each client; None: the client has none.

    Returns:
        The positions, ascending; empty if no client has a batch.
    """
    batch_shapes = [None if head is None else shapes(head[0]) for head in heads]
    counts = Counter(shape for shape in batch_shapes if shape is not None)
    if not counts:
        return []
    commonest = counts.most_common(1)[0][0]
    return [i for i, shape in enumerate(batch_shapes) if shape == commonest]
