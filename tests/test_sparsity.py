"""Penalties that make weights sparse: gradients, proximal steps, training with them, executors, wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.optim import SGD

from hetfl import ConfigurationError, Level
from hetfl.layout import Layout
from hetfl.local import (
    L1,
    ElasticNet,
    Executor,
    FedDyn,
    GroupLasso,
    LocalTraining,
    Penalty,
    Proximal,
    Sequential,
    Stacked,
    Sum,
    Workers,
)
from hetfl.local.bench import Bench
from hetfl.local.jobs import train
from hetfl.models import ConvNet
from hetfl.parts import RandomMask
from hetfl.types import Task
from tests.local_cases import Problem, bench_of, results, sgd

pytestmark = pytest.mark.usefixtures("double_precision")

Values = NDArray[np.float64]
ROWS, ENTRIES = 3, 4


def lasso(x: Values) -> float:
    return float(0.3 * abs(x).sum())


def elastic(x: Values) -> float:
    return float(0.3 * abs(x).sum() + 0.7 / 2 * (x**2).sum())


def groups(x: Values) -> float:
    return float(sum(0.3 * np.sqrt(len(row)) * np.sqrt((row**2).sum()) for row in x))


PENALTIES: dict[str, tuple[Callable[[bool], L1 | ElasticNet | GroupLasso], Callable[[Values], float]]] = {
    "l1": (lambda step: L1(0.3, step), lasso),
    "elastic": (lambda step: ElasticNet(0.3, 0.7, step), elastic),
    "group": (lambda step: GroupLasso(0.3, step), groups),
}


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("lr", [0.1, 1.5])
def test_a_proximal_step_is_the_minimum_that_a_search_finds(name: str, lr: float) -> None:
    make, term = PENALTIES[name]
    random = np.random.default_rng(0)
    theta = random.normal(size=(ROWS, ENTRIES)) * np.array([[0.005], [0.5], [5.0]])

    def objective(flat: Values) -> float:
        x = flat.reshape(ROWS, ENTRIES)
        return float(((x - theta) ** 2).sum() / 2 + lr * term(x))

    found = make(True).proximal(torch.from_numpy(theta), lr).numpy()
    least = objective(found.ravel())
    # The objective is convex: what no small or large step improves, and no search beats, is its minimum.
    for size in 10.0 ** -np.arange(7.0):
        for step in random.normal(size=(50, theta.size)) * size:
            assert objective(found.ravel() + step) >= least - 1e-12
    searched = minimize(objective, found.ravel() + 0.1, method="Powell", options={"xtol": 1e-10, "ftol": 1e-14})
    assert searched.fun == pytest.approx(least, abs=1e-8)
    assert not found[0].any()  # the row of small entries is exactly zero
    assert found[2].any()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_gradient_equals_differences_of_the_penalty_and_leaves_vectors_alone(name: str) -> None:
    make, term = PENALTIES[name]
    theta = np.random.default_rng(1).normal(size=(ROWS, ENTRIES))
    layout = Layout({"bias": (2,), "weight": (ROWS, 2, 2), "scale": ()})
    flat = torch.cat([torch.ones(2), torch.from_numpy(theta).flatten(), torch.ones(1)])
    gradient = torch.zeros_like(flat)
    make(False).add_gradient(gradient, flat, flat, None, layout)
    expected = np.zeros_like(theta)
    for place in np.ndindex(*theta.shape):
        step = np.zeros_like(theta)
        step[place] = 1e-6
        expected[place] = (term(theta + step) - term(theta - step)) / 2e-6
    np.testing.assert_allclose(gradient[2:-1].numpy(), expected.ravel(), atol=1e-8)
    assert not gradient[:2].any()
    assert not gradient[-1:].any()
    zero = torch.zeros_like(flat)
    make(False).add_gradient(zero, torch.zeros_like(flat), flat, None, layout)
    assert torch.equal(zero, torch.zeros_like(flat))


def shrunk(weight: Tensor, lr: float) -> Tensor:
    """Return the soft threshold 0.4 γ of a weight, then the group soft threshold 0.1 γ √n of its rows, by NumPy."""
    x = weight.numpy().reshape(len(weight), -1)
    x = np.sign(x) * np.maximum(abs(x) - 0.4 * lr, 0)
    norms = np.sqrt((x**2).sum(axis=1, keepdims=True))
    factors = np.where(norms > 0, 1 - 0.1 * lr * np.sqrt(x.shape[1]) / np.where(norms > 0, norms, 1), 0)
    return torch.from_numpy(x * np.maximum(factors, 0)).view(weight.shape)


class ShrinkingSGD(SGD):
    """SGD with proximal steps of its own for every parameter of two and more dimensions."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.dim() > 1:
                        parameter.copy_(shrunk(parameter, group["lr"]))


def test_training_with_proximal_steps_equals_an_optimizer_that_shrinks() -> None:
    """An optimizer of a class that is not elementwise gets the parameters one by one."""
    settings: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4}
    penalty, task = Sum([L1(0.4, True), GroupLasso(0.1, True)]), Task(1, "b", 4, 4, lr=0.05)
    by_penalty = Problem(LocalTraining(2, 10, 0.5, lambda p: SGD(p, **settings), penalty=penalty))
    by_optimizer = Problem(LocalTraining(2, 10, 0.5, lambda p: ShrinkingSGD(p, **settings)))
    one, two = bench_of(by_penalty), bench_of(by_optimizer)
    delta, expected = train(one, task).vector, train(two, task).vector
    assert torch.allclose(delta, expected, rtol=0, atol=1e-12)
    zeros = [float((bench.resident(task).vector == 0).double().mean()) for bench in (one, two)]
    assert zeros[0] == zeros[1]
    assert 0.1 < zeros[0] < 0.95


@pytest.mark.parametrize("executor", [Stacked(3), Workers(2)], ids=["stacked", "workers"])
@pytest.mark.parametrize("name", [*PENALTIES, "gradient", "sum"])
@pytest.mark.parametrize("channels", [1, 2], ids=["plain", "channels last"])
def test_executors_agree_with_masks_and_personal_tensors(executor: Executor, name: str, channels: int) -> None:
    others: dict[str, Penalty] = {
        "gradient": GroupLasso(0.02),
        "sum": Sum([Proximal(0.3), ElasticNet(0.1, 0.2, True)]),
    }
    penalty = PENALTIES[name][0](True) if name in PENALTIES else others[name]
    hidden = (4,) if channels == 1 else (4, 6)
    problem = Problem(
        LocalTraining(2, 10, 0.6, sgd(), penalty=penalty),
        net=lambda *, width=1.0: ConvNet(hidden=hidden, norm="none", width=width),
        levels={"a": Level("a"), "b": Level("b", 0.5, density=0.5)},
    )
    rule = RandomMask()
    rule.meet(problem.levels, seed=3)
    names = frozenset(n for n, _ in problem.net.named_parameters() if n.startswith("classifier"))
    size = {level: sum(p.numel() for n, p in problem.build(level).named_parameters() if n in names) for level in "ab"}

    def task(client: int, level: str) -> Task:
        own = torch.randn(size[level], generator=torch.Generator().manual_seed(client)) if level == "a" else None
        return Task(client, level, 3, 3, 0.05, part=rule.part(level, 3, client), personal=own)

    tasks = [task(client, level) for client in range(3) for level in "ab"]

    def bench() -> Bench:
        base = bench_of(problem)
        return Bench(replace(problem.local_problem(), personal=names), base.data, base.models)

    expected = results(Sequential(), bench(), tasks)
    try:
        actual = results(executor, bench(), tasks)
    finally:
        executor.close()
    for each, (delta, *_), (other, *_) in zip(tasks, expected, actual, strict=True):
        assert torch.allclose(other, delta, rtol=0, atol=1e-12)
        assert delta.abs().max() > 1e-4
        if each.part.mask_D is not None:
            assert not delta[~each.part.mask_D].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(0.0), "weight above 0 and at most 1e.06 but got 0.0"),
        (lambda: GroupLasso(float("nan")), "weight above 0"),
        (lambda: ElasticNet(0.1, -1.0), "l2 above 0 and at most 1e.06 but got -1.0"),
        (lambda: Sum([]), "penalties for Sum but got none"),
        (lambda: Sum([L1(0.1), FedDyn(0.1)]), "without memory for Sum but got FedDyn"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_sum_is_described_by_its_penalties() -> None:
    text = Sum([Proximal(0.1), L1(0.2, True)]).describe()
    assert text == "Sum(penalties=['Proximal(proximal_mu=0.1)', 'L1(weight=0.2, proximal_step=True)'])"
