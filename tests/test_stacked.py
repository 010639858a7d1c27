"""Stacked training gives each client the same result as training alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam

from hetfl.errors import ConfigurationError
from hetfl.local import FedDyn, LocalTraining, Proximal, Result, Sequential, Stacked
from hetfl.local.bench import Bench
from hetfl.local.by_shape import ByShape
from hetfl.local.executor import Job
from hetfl.local.jobs import statistics, train
from hetfl.local.stacked.stack import most_alike
from hetfl.models import ConvNet
from hetfl.submodel import state_of
from hetfl.types import ClientContext, Task
from tests.conftest import small_module
from tests.local_cases import Problem, Source, bench_of, compare, results, sgd, tasks_of

pytestmark = pytest.mark.usefixtures("double_precision")


OPTIMIZERS = [
    sgd(),
    sgd(nesterov=True),
    sgd(dampening=0.3),
    sgd(momentum=0.0),
    sgd(weight_decay=0.0, maximize=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("clients", [1, 3])
def test_stacked_training_equals_training_alone(make: Callable[..., SGD], clip: float | None, clients: int) -> None:
    """Sizes 23, 31 and 12 in batches of 10 give last batches of 3, 11 and 2, and different numbers of steps."""
    local = LocalTraining(epochs=2, batch_size=10, gradient_clip=clip, optimizer=make)
    compare(Problem(local), tasks_of([2, 0, 1, 3]), clients=clients)


@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 25), min_size=2, max_size=6),
    epochs=st.lists(st.integers(1, 3), min_size=6, max_size=6),
    batch_size=st.integers(1, 12),
    clients=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_stacked_training_equals_training_alone_for_ragged_cohorts(
    sizes: list[int], epochs: list[int], batch_size: int, clients: int, seed: int
) -> None:
    torch.manual_seed(seed)
    local = LocalTraining(epochs=2, batch_size=batch_size, gradient_clip=0.7, optimizer=sgd(dampening=0.1))
    problem = Problem(local, net=lambda *, width=1.0: ConvNet(hidden=(4,), norm="none", width=width))
    tasks = [Task(k, "b" if k % 2 else "a", 0, 0, 0.1, epochs=epochs[k]) for k in range(len(sizes))]
    compare(problem, tasks, tuple(sizes), clients=clients)


@pytest.mark.parametrize("penalty", [Proximal(0.7), FedDyn(0.4)])
def test_stacked_training_equals_training_alone_with_penalties_and_memories(penalty: Any) -> None:
    """Clients 0 and 3 have a memory, the others have none."""
    local = LocalTraining(epochs=3, optimizer=sgd(), gradient_clip=0.6, penalty=penalty)
    problem = Problem(local)
    random, tasks = torch.Generator().manual_seed(0), tasks_of([0, 1, 2, 3], "b")
    size = sum(p.numel() for p in problem.build("b").parameters())
    memories = {k: 0.1 * torch.randn(size, generator=random) for k in (0, 3)}
    recalled: list[int] = []

    def recall(task: Task) -> Task:
        recalled.append(task.client)
        return replace(task, memory_D=memories.get(task.client) if isinstance(penalty, FedDyn) else None)

    vectors = []
    for executor in (Sequential(), Stacked(2)):
        executor.open(bench_of(problem, (23, 31, 12, 23)))
        vectors.append([r.vector for r in executor.run(train, tasks, recall)])
    assert torch.allclose(torch.stack(vectors[0]), torch.stack(vectors[1]), rtol=0, atol=1e-12)
    assert recalled == [0, 1, 2, 3, 0, 1, 2, 3]


def test_stacked_clusters_start_from_their_models_and_are_not_mixed() -> None:
    problem = Problem(LocalTraining(optimizer=sgd()))
    other = {name: 0.5 * tensor for name, tensor in state_of(problem.net).items()}
    source, tasks = Source((23, 12, 23)), [Task(k, "b", 1, 1, 0.05, model=c) for k in range(3) for c in (1, 0)]
    expected, actual = (
        results(executor, Bench(problem.local_problem(), source, [state_of(problem.net), other]), tasks)
        for executor in (Sequential(), Stacked())
    )
    for (delta, *_), (vector, *_) in zip(expected, actual, strict=True):
        assert torch.allclose(vector, delta, rtol=0, atol=1e-12)


def test_a_new_model_is_loaded_and_state_of_the_previous_round_is_cleared() -> None:
    problem = Problem(LocalTraining(epochs=2, optimizer=sgd()))
    executor, plain, bench = Stacked(), Sequential(), bench_of(problem)
    executor.open(bench)
    plain.open(bench)
    for number in range(3):
        tasks = [Task(k, "b", number, number, 0.1 / (1 + number)) for k in range(3 - number)]
        for one, two in zip(executor.run(train, tasks), plain.run(train, tasks), strict=True):
            assert torch.allclose(one.vector, two.vector, rtol=0, atol=1e-12)
        with torch.no_grad():
            for p in problem.net.parameters():
                p.add_(0.01)


def test_other_jobs_are_not_stacked() -> None:
    problem = Problem(LocalTraining())
    expected, actual = (
        results(executor, bench_of(problem), tasks_of([0, 1, 2]), statistics) for executor in (Sequential(), Stacked())
    )
    assert all(torch.equal(one[0], two[0]) for one, two in zip(expected, actual, strict=True))


def test_results_do_not_share_memory() -> None:
    executor = Stacked()
    executor.open(bench_of(Problem(LocalTraining(optimizer=sgd()))))
    for result in executor.run(train, tasks_of([0, 1, 2])):
        assert result.vector.untyped_storage().nbytes() == result.vector.numel() * result.vector.element_size()


def test_results_are_in_task_order_and_groups_are_computed_when_needed() -> None:
    done: list[int] = []

    class Counting(Stacked):
        def work(self, job: Job, tasks: Sequence[Task]) -> list[Result]:
            done.append(len(tasks))
            return super().work(job, tasks)

    executor = Counting(2)
    executor.open(bench_of(Problem(LocalTraining()), (5,) * 6))
    tasks = [Task(k, "ab"[k % 2], 0, 0, 0.1) for k in range(6)]
    assert executor.groups(train, tasks) == [[0, 2], [4], [1, 3], [5]]
    run = executor.run(train, tasks)
    progress = [(next(run).task.client, len(done)) for _ in range(6)]
    assert progress == [(0, 1), (1, 2), (2, 2), (3, 2), (4, 3), (5, 4)]


def test_a_task_ends_after_its_steps() -> None:
    tasks = [replace(task, steps=2) for task in tasks_of([0, 1, 2])]
    problem = Problem(LocalTraining(epochs=2, batch_size=10, optimizer=sgd()))
    compare(problem, tasks)
    assert [passes for *_, passes in results(Stacked(), bench_of(problem), tasks)] == [20, 20, 20, 20, 12, 12]


def test_a_loss_that_depends_on_the_client_is_computed_per_client() -> None:
    class Weighted(Problem):
        def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
            return (1 + ctx.client) * F.cross_entropy(outputs, targets)

    problem = Weighted(LocalTraining(optimizer=sgd()))
    assert not any(stack.joint for stack in compare(problem, tasks_of([0, 1, 2])).values())


class Noisy(Problem):
    """Adds noise to the outputs, from torch's global generator."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return F.cross_entropy(outputs + torch.randn(outputs.shape, dtype=outputs.dtype), targets)


class Drawing(Problem):
    """Adds noise to the outputs, from the client's generator."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        noise = torch.randn(outputs.shape, dtype=outputs.dtype, generator=ctx.generator)
        return F.cross_entropy(outputs + noise, targets)


class Stepping(Problem):
    """A loss that grows from step to step."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return (1 + ctx.step) * F.cross_entropy(outputs, targets)


class Near(Problem):
    """Compares outputs with a tensor that the client began with."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return F.cross_entropy(outputs - ctx.anchor["classifier.bias"], targets)


class Growing(Problem):
    """A term that is zero in the first round and a sum over all clients of a group later."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        entropy = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        losses: Tensor = entropy.unflatten(0, targets.shape).mean(-1) + 0.01 * ctx.round * outputs.square().sum()
        return losses


@pytest.mark.parametrize("kind", [Drawing, Stepping, Near, Growing])
def test_a_loss_gets_the_context_of_its_client(kind: type[Problem]) -> None:
    problem = kind(LocalTraining(epochs=2, batch_size=5, optimizer=sgd()))
    for round in (0, 3):
        tasks = [replace(task, round=round) for task in tasks_of([0, 1, 2])]
        assert not any(stack.joint for stack in compare(problem, tasks).values())


def test_a_loss_with_torchs_random_numbers_is_trained_one_by_one() -> None:
    """A worker's generator would be in another state than that of one process."""
    problem, tasks = Noisy(LocalTraining(optimizer=sgd())), tasks_of([0, 1, 2])
    with pytest.raises(ConfigurationError, match=r"those of ctx.generator for executor Stacked but got Noisy\.loss"):
        results(Stacked(), bench_of(problem), tasks)
    grouping = ByShape(2)
    grouping.open(bench_of(problem))
    assert grouping.groups(train, tasks) == [[i] for i in range(len(tasks))]


def test_the_largest_set_of_clients_with_equal_shapes_steps_together() -> None:
    a, b = (torch.zeros(10), torch.zeros(10)), (torch.zeros(3), torch.zeros(3))
    assert most_alike([a, b, None, b]) == [1, 3]
    assert most_alike([a, b]) == [0]
    assert most_alike([None, None]) == []


def test_wrong_settings_are_refused() -> None:
    executor = Stacked()
    executor.open(bench_of(Problem(LocalTraining(optimizer=partial(Adam, lr=0.1)))))
    with pytest.raises(ConfigurationError, match="SGD for executor Stacked but got Adam"):
        next(executor.run(train, tasks_of([0])))
    with pytest.raises(ConfigurationError, match="clients of at least 1"):
        Stacked(0)


Fit = Callable[..., Any]


def test_a_stacked_run_ends_with_the_same_model(fit: Fit) -> None:
    weights = []
    for executor in (None, Stacked(3)):
        module = small_module(executor=executor)
        fit(module, precision="64-true", name=type(executor).__name__)
        weights.append([tensor.detach().clone() for tensor in module.models.tensors[0].values()])
    for one, two in zip(*weights, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_runs_of_every_precision_are_repeatable(fit: Fit, precision: str) -> None:
    torch.set_default_dtype(torch.float32)
    weights = []
    for name in ("one", "two"):
        module = small_module(executor=Stacked())
        fit(module, precision=precision, name=name)
        weights.append([tensor.detach().clone() for tensor in module.models.tensors[0].values()])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))
