"""Rounds on a card that is not there: the same numbers, no tensors of two devices, no step that waits for the card.

The helper is ``fake_cuda.py``. ``test_fake_cuda_rules.py`` checks it, and ``test_fake_cuda_updates.py`` has compressors
and aggregators.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.errors import ConfigurationError
from hetfl.local import (
    L1,
    Auto,
    DefaultExecutor,
    ElasticNet,
    Executor,
    FedDyn,
    GroupLasso,
    ImportanceGradient,
    LocalTraining,
    Penalty,
    Proximal,
    Sequential,
    Stacked,
    Workers,
)
from hetfl.local.by_shape import ByShape
from hetfl.local.jobs import gradients, losses, statistics
from hetfl.local.stacked.batched import VmappedNet
from hetfl.local.stacked.folding import FoldedNet
from hetfl.objectives import Classification, LanguageModelling, MultiLabel, Regression
from hetfl.part import Part
from hetfl.types import Level, Task
from tests.conftest import fit_in, small_data, small_levels, small_module, small_net
from tests.fake_cuda import CARD, fake_card, mark, on_card
from tests.local_cases import Problem, bench_of, results, sgd, tasks_of

pytestmark = pytest.mark.usefixtures("double_precision")


class OnCard(Problem):
    """A local problem whose global model is on the card; only inside of its context."""

    def build(self, level: str) -> nn.Module:
        return super().build(level).to(next(self.net.parameters()))


def problem_of(local: LocalTraining, card: bool, **settings: Any) -> OnCard:
    problem = OnCard(local, **settings)
    if card:
        problem.net.to(CARD)
    return problem


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "ByShape": partial(ByShape, 2),
    "DefaultExecutor": DefaultExecutor,
}


def trained(
    make: Callable[[], Executor], card: bool, epochs: int, tasks: Sequence[Task], **settings: Any
) -> list[tuple[Any, ...]]:
    penalty, settings = settings.pop("penalty", None), {"levels": small_levels(1.0, 0.5)} | settings
    local = LocalTraining(epochs=epochs, batch_size=6, gradient_clip=0.5, optimizer=sgd(), penalty=penalty)
    return results(make(), bench_of(problem_of(local, card, **settings), (13, 19, 12)), tasks)


def check_steps(make: Callable[[], Executor], tasks: Sequence[Task], **settings: Any) -> None:
    """Check that training has the numbers of the CPU, and that more epochs make the host wait no more often."""
    expected, waits = trained(Sequential, False, 2, tasks, **settings), []
    for epochs in (1, 2):
        with fake_card() as card:
            sent = [_moved(task) for task in tasks]
            card.waits.clear()
            got = trained(make, True, epochs, sent, **settings)
        waits.append(card.lines())
    assert waits[0] == waits[1]
    for (vector, *numbers), (delta, *others) in zip(got, expected, strict=True):
        assert on_card(vector)
        assert torch.allclose(mark(vector, False), delta, rtol=0, atol=1e-12)
        assert numbers == pytest.approx(others)


def _moved(task: Task) -> Task:
    """Return a task whose client's memory is where the stores leave it: on the models' device."""
    return task if task.memory_D is None else replace(task, memory_D=task.memory_D.to(CARD))


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS)
def test_no_step_of_an_executor_waits(make: Callable[[], Executor]) -> None:
    check_steps(make, tasks_of([2, 0, 1], "b"))


class Products(nn.Module):
    """A net of matrices, which clients cannot be folded into."""

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        hidden, random = round(8 * width), torch.Generator().manual_seed(0)
        self.inner = nn.Parameter(0.1 * torch.randn(64, hidden, generator=random))
        self.outer = nn.Parameter(0.1 * torch.randn(hidden, 10, generator=random))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return torch.tanh(x_NCHW.flatten(1) @ self.inner) @ self.outer


@pytest.mark.parametrize(("net", "kind"), [(small_net, FoldedNet), (Products, VmappedNet)])
def test_no_step_of_a_stack_waits(net: Callable[..., nn.Module], kind: type) -> None:
    executor = Stacked(2)
    check_steps(lambda: executor, tasks_of([2, 0, 1], "b"), net=net)
    assert isinstance(executor._stacks["b"].net, kind)


@pytest.mark.parametrize(
    ("make", "penalty"),
    [
        *((Sequential, penalty) for penalty in (Proximal(0.7), FedDyn(0.4), ImportanceGradient(), L1(1e-3))),
        *((Sequential, penalty) for penalty in (ElasticNet(1e-3, 1e-3), GroupLasso(1e-3))),
        *((partial(Stacked, 2), penalty) for penalty in (FedDyn(0.4), GroupLasso(1e-3))),
    ],
)
def test_no_penalty_and_no_mask_makes_a_step_wait(make: Callable[[], Executor], penalty: Penalty) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5, density=0.4)}
    problem, random = Problem(LocalTraining(), levels=levels), torch.Generator().manual_seed(0)
    index, size = problem.levels.indices["b"], sum(p.numel() for p in problem.build("b").parameters())
    part = Part(index, torch.rand(index.layout.size, generator=random) < 0.4)
    memory_D = 0.1 * torch.randn(size, generator=random) if isinstance(penalty, FedDyn) else None
    tasks = [Task(k, "b", 3, 3, 0.05, part=part, memory_D=memory_D) for k in (1, 2)]
    check_steps(make, tasks, levels=levels, penalty=penalty)


def test_auto_measures_and_chooses_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.local.auto.probe.PATIENCE", 1e-3)
    with fake_card():
        executor = Auto(clients=2, num_workers=1)
        trained(lambda: executor, True, 1, tasks_of([2, 0, 1], "b"))
    assert executor.chosen["device"] == "cuda"
    assert not executor.chosen["processes"]


def test_workers_are_refused_in_one_line() -> None:
    with fake_card(), pytest.raises(ConfigurationError, match="on the CPU for executor Workers but got cuda:0"):
        trained(Workers, True, 1, tasks_of([0]))


@pytest.mark.parametrize("job", [losses, gradients, statistics])
def test_other_jobs_have_the_numbers_of_the_cpu(job: Any) -> None:
    local = LocalTraining(batch_size=6)
    asked = job if job is statistics else partial(job, samples=None)
    tasks = tasks_of([1], "ba")
    expected = results(Sequential(), bench_of(problem_of(local, False)), tasks, asked)
    with fake_card():
        got = results(Sequential(), bench_of(problem_of(local, True)), tasks, asked)
    for (vector, loss, *_), (other, other_loss, *_) in zip(got, expected, strict=True):
        assert torch.allclose(mark(vector.clone(), False), other, rtol=0, atol=1e-12)
        assert loss == pytest.approx(other_loss)


OBJECTIVES = {
    "classes": (Classification(class_weights=[1.0, 2.0, 3.0]), (5, 3), torch.tensor([0, 1, 2, 1, 0])),
    "classes of clients": (
        Classification(class_weights=[1.0, 2.0, 3.0]),
        (2, 5, 3),
        torch.tensor([0, 1, 2, 1, 0]).expand(2, 5),
    ),
    "labels": (MultiLabel(positive_weights=[1.0, 2.0]), (3, 2), torch.tensor([[0, 1], [1, 1], [0, 0]])),
    "numbers": (Regression(), (3, 2), torch.tensor([[0.1, 1.0], [1.0, 2.0], [0.0, 0.0]])),
    "tokens": (LanguageModelling(), (2, 3, 4), torch.tensor([[0, 1, -100], [3, 2, 1]])),
}


@pytest.mark.parametrize("case", OBJECTIVES.values(), ids=OBJECTIVES)
def test_no_loss_waits(case: tuple[Any, tuple[int, ...], Tensor]) -> None:
    objective, shape, targets = case
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = objective.loss(outputs, targets)
    with fake_card() as card:
        there = (outputs.to(CARD), targets.to(CARD))
        card.waits.clear()
        loss = objective.loss(*there)
        assert not card.waits
        assert on_card(loss)
    assert torch.allclose(mark(loss, False), expected)


def test_a_whole_run_has_the_numbers_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also statistics, validation of all levels, residuals and a checkpoint, in Lightning's order."""

    def run(name: str) -> list[dict[str, str]]:
        module = small_module(uplink=ErrorFeedback(GammaFedHT(density=0.1)))
        fit_in(tmp_path / name)(module, small_data(num_clients=6), rounds=2, enable_checkpointing=True)
        (metrics,) = (tmp_path / name).rglob("metrics.csv")
        return list(csv.DictReader(metrics.read_text().splitlines()))

    expected = run("cpu")
    monkeypatch.setattr(CPUAccelerator, "setup_device", lambda *_: None)
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", CARD)
    with fake_card():
        got = run("card")
    assert len(got) == 2
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == value or float(ours[name]) == pytest.approx(float(value), rel=1e-9), name
