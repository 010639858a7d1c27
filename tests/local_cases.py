"""A local training problem on random images without a trainer, shared by tests of local training and executors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from hetfl.data import ClientData, Plain
from hetfl.levels.level_set import LevelSet
from hetfl.local import Executor, LocalProblem, LocalTraining, Sequential, Stacked
from hetfl.local.bench import Bench
from hetfl.local.executor import Job
from hetfl.local.jobs import train
from hetfl.local.method import LocalMethod
from hetfl.submodel import state_of
from hetfl.types import ClientContext, Level, Task
from tests.conftest import small_levels, small_net


class Source:
    """Random images for clients with different numbers of samples."""

    transform = Plain()

    def __init__(self, sizes: tuple[int, ...]) -> None:
        random = torch.Generator().manual_seed(3)
        self.clients = [
            ClientData(torch.rand(n, 1, 8, 8, generator=random), torch.randint(10, (n,), generator=random))
            for n in sizes
        ]

    def client_data(self, client: int, split: str = "train") -> ClientData:
        return self.clients[client]

    def labels(self, client: int) -> Tensor:
        return torch.bincount(self.clients[client].targets, minlength=10) > 0


class Problem(LocalMethod):
    """A plain local problem over a level set."""

    def __init__(
        self,
        local: LocalTraining,
        net: Callable[..., nn.Module] = small_net,
        levels: dict[str, Level] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.seed, self.local, self.dtype = 5, local, dtype
        self.levels = LevelSet(net, levels or small_levels(1.0, 0.5), 5)
        self.net = self.levels.net.to(dtype)

    def build(self, level: str) -> nn.Module:
        return self.levels.build(level).to(self.dtype)

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def precision_context(self) -> AbstractContextManager[object]:
        return nullcontext()

    def local_problem(self) -> LocalProblem:
        blocks = self.levels.indices
        return LocalProblem(self.seed, self.local, blocks, self.build, self, self.precision_context)


def bench_of(problem: Problem, sizes: tuple[int, ...] = (23, 31, 12)) -> Bench:
    return Bench(problem.local_problem(), Source(sizes), [state_of(problem.net)])


def results(executor: Executor, bench: Bench, tasks: Sequence[Task], job: Job = train) -> list[tuple[Any, ...]]:
    executor.open(bench)
    listed = list(executor.run(job, tasks))
    assert [result.task for result in listed] == list(tasks)
    return [(r.vector, r.report.loss, r.report.samples, r.report.passes) for r in listed]


def compare(problem: Problem, tasks: Sequence[Task], sizes: tuple[int, ...] = (23, 31, 12, 23), **options: Any) -> Any:
    """Compare the results of both executors up to 1e-12; return the stacks that were used."""
    executor = Stacked(**options)
    expected, actual = (
        results(Sequential(), bench_of(problem, sizes), tasks),
        results(executor, bench_of(problem, sizes), tasks),
    )
    for (delta, loss, *counts), (other, other_loss, *other_counts) in zip(expected, actual, strict=True):
        assert delta.abs().max() > 1e-4
        assert torch.allclose(other, delta, rtol=0, atol=1e-12)
        assert other_loss == pytest.approx(loss, rel=1e-12)
        assert other_counts == counts
    return executor._stacks


def tasks_of(clients: Sequence[int], levels: str = "ba", lr: float = 0.05, **changes: Any) -> list[Task]:
    return [Task(k, level, 3, 3, lr, **changes) for k in clients for level in levels]


def sgd(**changes: Any) -> Callable[..., SGD]:
    return partial(SGD, lr=1.0, **{"momentum": 0.9, "weight_decay": 5e-3, **changes})
