"""Local training against a bare PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adafactor, Adagrad, Adam, Optimizer

from hetfl.errors import ConfigurationError
from hetfl.local import FedDyn, LocalTraining, Penalty, Proximal, Workers
from hetfl.local.flops import flops_per_sample
from hetfl.local.jobs import statistics, train, unpack_statistics
from hetfl.local.resident import ResidentNet
from hetfl.local.training import batches
from hetfl.models import ConvNet
from hetfl.models.static_batch_norm import static_layers
from hetfl.seeding import generator
from hetfl.submodel import state_of
from hetfl.types import Task
from tests.conftest import small_net
from tests.local_cases import Problem, Source, bench_of

pytestmark = pytest.mark.usefixtures("double_precision")


def bare_loop(
    problem: Problem,
    source: Source,
    task: Task,
    make: Callable[..., Optimizer],
    term: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, float]:
    """Train a new net with one optimizer over its list of parameters, in a plain loop.

    ``term`` is added to the loss; it is a function of the parameters now and at the start, as vectors.
    """
    net = problem.build(task.level)
    for name, tensor in state_of(net).items():
        tensor.data.copy_(state_of(problem.net)[name][tuple(slice(0, s) for s in tensor.shape)])
    start = torch.cat([t.detach().reshape(-1).clone() for t in state_of(net).values()])
    optimizer = make(net.parameters())
    for group in optimizer.param_groups:
        group["lr"] = task.lr
    random = generator(problem.seed, "local", task.round, task.client)
    data, losses, seen = source.client_data(task.client), 0.0, 0
    net.train()
    for _ in range(task.epochs or problem.local.epochs):
        for batch in batches(len(data.targets), problem.local.batch_size, random):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(data.inputs[batch]), data.targets[batch])
            loss.backward()
            if term is not None:
                theta = torch.cat([p.reshape(-1) for p in net.parameters()])
                term(theta, start[: theta.numel()]).backward()
            if problem.local.gradient_clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), problem.local.gradient_clip)
            optimizer.step()
            losses, seen = losses + loss.item() * len(batch), seen + len(batch)
    end = torch.cat([t.detach().reshape(-1) for t in state_of(net).values()])
    return end - start, losses / seen


OPTIMIZERS: list[Callable[..., Optimizer]] = [
    lambda p: SGD(p, lr=1.0, momentum=0.9, weight_decay=5e-4),
    lambda p: SGD(p, lr=1.0, momentum=0.9, dampening=0.3),
    # A large eps: the gradient of a bias before batch norm is rounding noise, which Adam would amplify.
    lambda p: Adam(p, lr=1.0, eps=1e-3),
    lambda p: Adagrad(p, lr=1.0, lr_decay=0.1, initial_accumulator_value=0.3),  # starts with a state
    lambda p: SGD(p, lr=1.0, momentum=0.9, nesterov=True, foreach=True),
    lambda p: Adafactor(p, lr=1.0, eps=(1e-3, 1e-3)),  # uses rows and columns: it must not get one flat vector
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["static_batch", "batch", "none"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_training_equals_a_bare_loop(make: Callable[..., Optimizer], norm: str, clip: float | None) -> None:
    problem = Problem(
        LocalTraining(epochs=2, batch_size=10, gradient_clip=clip, optimizer=make),
        net=lambda *, width=1.0: small_net(width=width, norm=norm),
    )
    bench = bench_of(problem)
    # The second client must not use the first one's optimizer state, gradients or weights.
    for client, level in ((0, "b"), (1, "b"), (1, "a"), (0, "b")):
        task = Task(client, level, round=4, version=4, lr=0.02)
        result = train(bench, task)
        expected, loss = bare_loop(problem, bench.data, task, make)  # type: ignore[arg-type]
        assert torch.allclose(result.vector, expected, rtol=1e-9, atol=1e-12)
        assert result.report.loss == pytest.approx(loss, rel=1e-9)
        assert result.report.passes == 2 * result.report.samples


@pytest.mark.parametrize("norm", ["static_batch", "batch"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_penalised_training_equals_a_bare_loop_with_the_penalty_in_the_loss(norm: str, clip: float | None) -> None:
    def make(parameters: Any) -> Optimizer:
        return SGD(parameters, lr=1.0, momentum=0.9, weight_decay=5e-4)

    def problem(penalty: Penalty) -> Problem:
        local = LocalTraining(epochs=3, batch_size=10, gradient_clip=clip, optimizer=make, penalty=penalty)
        return Problem(local, net=lambda *, width=1.0: small_net(width=width, norm=norm))

    task = Task(1, "b", round=4, version=4, lr=0.02, epochs=2)
    near, dynamic = problem(Proximal(0.7)), problem(FedDyn(0.4))
    proximal, feddyn = bench_of(near), bench_of(dynamic)
    expected, _ = bare_loop(
        near,
        proximal.data,  # type: ignore[arg-type]
        task,
        make,
        lambda theta, start: 0.35 * (theta - start).square().sum(),
    )
    assert torch.allclose(train(proximal, task).vector, expected, rtol=1e-9, atol=1e-12)
    size = feddyn.resident(task).vector.numel()
    memory = 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected, _ = bare_loop(
        dynamic,
        feddyn.data,  # type: ignore[arg-type]
        task,
        make,
        lambda theta, start: -(memory * theta).sum() + 0.2 * (theta - start).square().sum(),
    )
    actual = train(feddyn, replace(task, memory_D=memory)).vector
    assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(train(feddyn, task).vector, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "fused"), [(SGD, True), (Adam, True), (partial(SGD, fused=False), False), (Adagrad, None)]
)
def test_a_fused_step_is_used_unless_the_optimizer_state_prevents_it(
    make: Callable[..., Optimizer], fused: bool | None
) -> None:
    """Adagrad has a state from the start, with its step count on the CPU, which a fused GPU kernel cannot use."""
    assert ResidentNet(nn.Linear(2, 2), make).optimizer.param_groups[0]["fused"] is fused


def test_a_new_model_version_is_loaded() -> None:
    problem = Problem(LocalTraining())
    bench = bench_of(problem)
    first = train(bench, Task(0, "b", 0, 0, 0.05)).vector
    with torch.no_grad():
        for p in problem.net.parameters():
            p.mul_(0.5)
    assert torch.equal(train(bench, Task(0, "b", 0, 0, 0.05)).vector, first)  # version 0 is the loaded one
    assert not torch.equal(train(bench, Task(0, "b", 0, 1, 0.05)).vector, first)


@given(st.integers(1, 60), st.integers(1, 12))
def test_batches_contain_every_sample_once_and_no_batch_has_one_sample(num_samples: int, batch_size: int) -> None:
    drawn = list(batches(num_samples, batch_size, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(drawn).tolist()) == list(range(num_samples))
    assert all(len(batch) <= batch_size + 1 for batch in drawn)
    if batch_size > 1 and num_samples > 1:
        assert min(len(batch) for batch in drawn) > 1
    if batch_size == 1:
        assert len(drawn) == num_samples


def test_statistics_are_sums_over_the_clients_batches() -> None:
    problem = Problem(LocalTraining(batch_size=10))
    bench = bench_of(problem)
    task = Task(0, "b", 2, 2, 0.0)
    result = statistics(bench, task)
    net = bench.resident(task).net
    first = unpack_statistics(net, result.vector)["blocks.0.norm"]
    data, random = bench.data.client_data(0), generator(problem.seed, "statistics", 2, 0)
    means, variances = 0.0, 0.0
    for batch in batches(23, 10, random):
        out = net.get_submodule("blocks.0.conv")(data.inputs[batch])
        means, variances = means + out.mean((0, 2, 3)), variances + out.var((0, 2, 3))
    assert first.batches == 3
    assert torch.allclose(first.mean_C, means, atol=1e-12)  # type: ignore[arg-type]
    assert torch.allclose(first.var_C, variances, atol=1e-12)  # type: ignore[arg-type]
    assert unpack_statistics(net, result.vector).keys() == static_layers(net).keys()


def test_flops_of_the_convnet_by_hand() -> None:
    net = ConvNet(hidden=(8, 16), width=1.0).double()
    forward, training = flops_per_sample(net, torch.rand(4, 1, 8, 8))
    first, second, head = 2 * 64 * 9 * 1 * 8, 2 * 16 * 9 * 8 * 16, 2 * 16 * 10
    assert forward == first + second + head
    # Backward: gradients of weights and of inputs, except for the gradient of the images.
    assert training == 3 * (first + second + head) - first


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_size": 0}, {"gradient_clip": 0.0}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        LocalTraining(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="num_workers"):
        Workers(0)
