"""Extension points of local training: a loss of net and batch, methods around steps, and narrowed nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from hetfl import FedAvg, HeteroFL, Level
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.local import LocalTraining, Sequential, Stacked, Workers
from hetfl.local.jobs import train, training_batches
from hetfl.local.method import Batch, LocalMethod
from hetfl.piece import Piece
from hetfl.seeding import generator
from hetfl.types import ClientContext, Range, Task
from tests.conftest import small_levels, small_module
from tests.local_cases import Problem, bench_of, results, sgd, tasks_of

Fit = Callable[..., Trainer]


class OrderedDropout(LocalMethod):
    """FjORD: every batch is trained at a width that is drawn from the widths that the client can afford."""

    levels: LevelSet

    def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
        names = list(self.levels)
        affordable = names[names.index(ctx.level) :]
        drawn = affordable[int(torch.randint(len(affordable), (), generator=ctx.generator))]
        return self.loss(ctx.narrowed(drawn)(batch[0]), batch[1], ctx)


class Ordered(OrderedDropout, Problem):
    """Ordered dropout without a run."""


@pytest.mark.usefixtures("double_precision")
def test_ordered_dropout_equals_a_bare_loop() -> None:
    levels = small_levels(1.0, 0.5, 0.25)
    problem = Ordered(LocalTraining(epochs=3, batch_size=8, optimizer=sgd(momentum=0.0)), levels=levels)
    bench, task = bench_of(problem), Task(1, "a", 4, 4, 0.03)
    actual = train(bench, task).vector
    theta = {name: p.detach().clone() for name, p in problem.net.named_parameters()}
    random, used = generator(problem.seed, "method", 4, 1), set[str]()
    for inputs, targets in training_batches(bench, task):
        level = "abc"[int(torch.randint(3, (), generator=random))]
        used.add(level)
        net = problem.build(level).train()
        corners = {name: tuple(slice(size) for size in p.shape) for name, p in net.named_parameters()}
        leaves = {name: theta[name][corner].clone().requires_grad_() for name, corner in corners.items()}
        loss = F.cross_entropy(functional_call(net, leaves, (inputs,)), targets)
        for name, grad in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            whole = torch.zeros_like(theta[name])
            whole[corners[name]] = grad
            theta[name] -= 0.03 * (whole + 5e-3 * theta[name])
    start = torch.cat([p.detach().flatten() for p in problem.net.parameters()])
    expected = torch.cat([value.flatten() for value in theta.values()]) - start
    assert used == {"a", "b", "c"}
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("double_precision")
def test_a_method_with_local_loss_runs_in_workers_and_is_refused_by_stacked() -> None:
    problem = Ordered(LocalTraining(epochs=2, optimizer=sgd()))
    expected = results(Sequential(), bench_of(problem), tasks_of([0, 1, 2]))
    workers = Workers(2)
    try:
        actual = results(workers, bench_of(problem), tasks_of([0, 1, 2]))
    finally:
        workers.close()
    assert all(torch.equal(one[0], two[0]) for one, two in zip(expected, actual, strict=True))
    with pytest.raises(ConfigurationError, match=r"for executor Stacked but got Ordered\.local_loss"):
        results(Stacked(2), bench_of(problem), tasks_of([0, 1]))


def test_narrowing_to_a_level_outside_the_clients_is_refused() -> None:
    class Widening(Problem):
        def local_loss(self, net: nn.Module, batch: Batch, ctx: ClientContext) -> Tensor:
            return ctx.narrowed("a")(batch[0]).sum()

    problem = Widening(LocalTraining())
    with pytest.raises(ConfigurationError, match="Expected a level within b to narrow to but got a"):
        train(bench_of(problem), Task(0, "b", 0, 0, 0.1))


class Recording(Problem):
    """Records its calls."""

    def __init__(self, local: LocalTraining, **settings: Any) -> None:
        super().__init__(local, **settings)
        self.calls: list[tuple[str, int, float]] = []
        self.norms: list[float] = []

    def before_client(self, net: nn.Module, ctx: ClientContext) -> None:
        self.calls.append(("before", ctx.step, ctx.lr))
        assert all(torch.equal(p, ctx.anchor[name]) for name, p in net.named_parameters())

    def after_step(self, net: nn.Module, ctx: ClientContext) -> None:
        self.calls.append(("step", ctx.step, ctx.lr))

    def after_client(self, net: nn.Module, ctx: ClientContext) -> Mapping[str, float]:
        moved = [float((p.detach() - ctx.anchor[name]).norm()) for name, p in net.named_parameters()]
        self.calls.append(("after", ctx.step, ctx.lr))
        return {"moved": sum(moved)}


def test_methods_around_steps_are_called_in_order() -> None:
    problem = Recording(LocalTraining(epochs=1, batch_size=10), dtype=torch.float32)
    result = train(bench_of(problem, (23,)), replace(Task(0, "b", 0, 0, 0.1), steps=2))
    assert problem.calls == [("before", 0, 0.1), ("step", 0, 0.1), ("step", 1, 0.1), ("after", 2, 0.1)]
    assert result.report.extras["moved"] > 0


class MeanOfMoved(Piece):
    """Reads an extra of the reports."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def extras(self) -> dict[str, Range]:
        return {"moved": Range(0.0, 100.0, "moved")}

    def observe(self, update: Any, index: Any, report: Any) -> None:
        self.seen.append(report.extras["moved"])


class Reports(HeteroFL):
    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.moved = MeanOfMoved()

    def after_client(self, net: nn.Module, ctx: ClientContext) -> Mapping[str, float]:
        return {"moved": float(sum((p.detach() - ctx.anchor[name]).norm() for name, p in net.named_parameters()))}


def test_extras_of_a_method_reach_the_declaring_piece(fit: Fit) -> None:
    module: Any = small_module(Reports)
    fit(module, rounds=2)
    assert len(module.moved.seen) == 8
    assert min(module.moved.seen) > 0


class Fjord(OrderedDropout, FedAvg):
    """Ordered dropout on the levels of a run."""


def test_a_run_of_ordered_dropout_ends_with_the_same_bits_in_workers(fit: Fit) -> None:
    one = small_module(Fjord, levels={"a": Level("a"), "b": Level("b", 0.5)})
    two = small_module(Fjord, levels={"a": Level("a"), "b": Level("b", 0.5)}, executor=Workers(2))
    fit(one, rounds=2, name="one")
    fit(two, rounds=2, name="two")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
