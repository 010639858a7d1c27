"""Penalties of the local objective: FedProx and FedDyn against NumPy formulas, and the costs of stragglers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from torch.optim import SGD

from hetfl import ConfigurationError
from hetfl.compression import ErrorFeedback, TopK
from hetfl.hooks import Hooks
from hetfl.layout import Index, Layout
from hetfl.local import FedDyn, ImportanceGradient, LocalTraining, Penalty, Proximal, Workers
from hetfl.piece import Facts
from hetfl.store import DiskStore
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.conftest import small_module

Fit = Callable[..., Trainer]


def local(penalty: Penalty | None = None, **changes: Any) -> LocalTraining:
    return LocalTraining(**{"batch_size": 10, "optimizer": lambda p: SGD(p, lr=0.05), "penalty": penalty, **changes})


def test_proximal_gradient_equals_autograd_of_the_penalty() -> None:
    random = torch.Generator().manual_seed(0)
    theta, anchor = torch.randn(7, generator=random, dtype=torch.float64), torch.randn(7, generator=random).double()
    theta.requires_grad_()
    (0.3 / 2 * (theta - anchor).square().sum()).backward()
    gradient = torch.ones(7, dtype=torch.float64)
    Proximal(0.3).add_gradient(gradient, theta.detach(), anchor, None, Layout({"w": (7,)}))
    assert theta.grad is not None
    assert torch.allclose(gradient, 1 + theta.grad, rtol=0, atol=1e-15)


def test_the_importance_gradient_has_its_published_value_and_the_threshold_of_each_client() -> None:
    """FIARSE at w = 0.5 with threshold 0.3 multiplies by 1.46875; entries that are not held stay without a gradient."""
    gradient = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    theta = torch.tensor([[-0.5, 0.3, 0.0], [0.5, 0.1, 4.0]], dtype=torch.float64)
    anchor = torch.tensor([[0.6, -0.3, 0.0], [-0.1, 0.2, 4.0]], dtype=torch.float64)
    ImportanceGradient().add_gradient(gradient, theta, anchor, None, Layout({"w": (3,)}))
    slope = [1 + 2 * 0.1 * w / (w + 0.1) ** 2 for w in (0.5, 0.1, 4.0)]
    assert gradient.tolist() == [pytest.approx([1.46875, 3.0, 0.0]), pytest.approx(slope)]


def test_feddyn_gradient_equals_autograd_of_the_penalty() -> None:
    random = torch.Generator().manual_seed(0)
    theta, anchor, memory = torch.randn(3, 7, generator=random, dtype=torch.float64)
    theta.requires_grad_()
    (-(memory * theta).sum() + 0.3 / 2 * (theta - anchor).square().sum()).backward()
    gradient = torch.ones(7, dtype=torch.float64)
    FedDyn(0.3).add_gradient(gradient, theta.detach(), anchor, memory, Layout({"w": (7,)}))
    assert theta.grad is not None
    assert torch.allclose(gradient, 1 + theta.grad, rtol=0, atol=1e-15)


SHAPES = {"stem": (6, 3), "head": (4, 6), "bias": (4,)}
CLIENTS = 9


def index_of(random: np.random.Generator) -> Index:
    """Return a width-scaled index; some clients lack the head's first rows, some the whole head."""
    rows, columns = int(random.integers(2, 7)), int(random.integers(1, 4))
    index: dict[str, Any] = {"stem": (slice(0, rows), slice(0, columns))}
    if random.random() < 0.7:
        rows_held = torch.from_numpy(np.sort(random.permutation(4)[: random.integers(1, 5)]))
        index |= {"head": (rows_held, slice(0, rows)), "bias": (rows_held,)}
    return index


def positions(index: Index, name: str) -> Any:
    return np.ix_(*[np.arange(p.start, p.stop) if isinstance(p, slice) else p.numpy() for p in index[name]])


@pytest.mark.parametrize("on_disk", [False, True])
def test_memories_of_clients_and_server_follow_the_formulas_over_rounds(tmp_path: Path, on_disk: bool) -> None:
    """20 rounds of partial participation; h is the mean of all N memories, and corrects only held entries."""
    alpha, random = 0.07, np.random.default_rng(0)
    feddyn = FedDyn(alpha, DiskStore(str(tmp_path)) if on_disk else None)
    parameters = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    feddyn.setup(Facts([1] * CLIENTS, parameters=parameters))
    feddyn.begin()
    g = [{name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(CLIENTS)]
    h = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for round in range(20):
        sums = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        counts = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for client in random.permutation(CLIENTS)[:3].tolist():
            index = index_of(random)
            parts = []
            for name in index:
                where = positions(index, name)
                sent = random.normal(size=sums[name][where].shape)
                sums[name][where] += sent
                counts[name][where] += 1
                g[client][name][where] -= alpha * sent
                parts.append(sent.ravel())
            update = DenseUpdate(torch.from_numpy(np.concatenate(parts)))
            before = feddyn.memory(client, index, update.values)
            before = None if before is None else before.clone()  # the next write may reuse its memory
            feddyn.observe(update, index, Report(client, "a", 1, 0.0))
            feddyn.remember(client, round, index, update)
            after = feddyn.memory(client, index, update.values)
            assert after is not None
            step = after if before is None else after - before
            assert torch.allclose(step, -alpha * update.values, rtol=0, atol=1e-12)
        mean = {
            name: np.divide(sums[name], counts[name], where=counts[name] > 0, out=sums[name] * 0) for name in SHAPES
        }
        for name in SHAPES:
            h[name] -= alpha * counts[name] / CLIENTS * mean[name]  # the authors' form: h ← h − α c/N (mean step)
        corrected = Hooks(feddyn).on_step(
            0,
            {name: torch.from_numpy(value) for name, value in mean.items()},
            {name: torch.from_numpy(value) for name, value in counts.items()},
        )
        for name in SHAPES:
            np.testing.assert_allclose(feddyn.server[0][name].numpy(), h[name], atol=1e-12)
            np.testing.assert_allclose(h[name], np.mean([memory[name] for memory in g], axis=0), atol=1e-12)
            expected = np.where(counts[name] > 0, mean[name] - h[name] / alpha, 0.0)
            np.testing.assert_allclose(corrected[name].numpy(), expected, atol=1e-12)


def test_the_servers_memory_equals_the_mean_of_client_memories_under_compression(fit: Fit) -> None:
    feddyn = FedDyn(0.2)
    module = small_module(local=local(feddyn), uplink=ErrorFeedback(TopK(0.1)))
    fit(module, rounds=5, precision="64-true", limit_val_batches=0)
    assert len(feddyn.memories.clients()) > 4
    for name, h in feddyn.server[0].items():
        total = torch.zeros_like(h)
        for client in feddyn.memories.clients():
            blocks = feddyn.memories.load(client)
            if name in blocks:
                total[tuple(slice(size) for size in blocks[name].shape)] += blocks[name]
        assert torch.allclose(h, total / 12, rtol=0, atol=1e-12)
    assert any(bool(h.any()) for h in feddyn.server[0].values())


@pytest.mark.parametrize("penalty", [lambda: FedDyn(0.1), pytest.param(lambda: Proximal(0.5), marks=pytest.mark.slow)])
def test_a_penalty_works_with_workers_compression_and_resuming(
    fit: Fit, tmp_path: Path, penalty: Callable[[], Penalty]
) -> None:
    def module(**changes: Any) -> Any:
        return small_module(local=local(penalty()), uplink=ErrorFeedback(TopK(0.2)), **changes)

    whole, workers, plain = module(), module(executor=Workers(2)), small_module(local=local())
    options: dict[str, Any] = {"limit_val_batches": 0}
    fit(whole, rounds=4, name="whole", **options)
    fit(workers, rounds=4, name="workers", **options)
    fit(plain, rounds=4, name="plain", **options)
    fit(module(), rounds=2, name="half", **options).save_checkpoint(tmp_path / "half.ckpt")
    resumed = module()
    fit(resumed, rounds=4, name="resumed", ckpt=str(tmp_path / "half.ckpt"), **options)
    for name, tensor in whole.models.tensors[0].items():
        assert torch.equal(workers.models.tensors[0][name], tensor)
        assert torch.equal(resumed.models.tensors[0][name], tensor)
    assert any(
        not torch.equal(plain.models.tensors[0][name], tensor) for name, tensor in whole.models.tensors[0].items()
    )


def test_a_strong_proximal_term_keeps_clients_near_the_global_model(fit: Fit) -> None:
    moved = []
    for mu in (0.01, 10.0):
        module = small_module(local=local(Proximal(mu)))
        before = {name: tensor.detach().clone() for name, tensor in module.models.tensors[0].items()}
        fit(module, rounds=1, limit_val_batches=0)
        after = module.models.tensors[0]
        moved.append(sum(float((after[name].detach() - tensor).square().sum()) for name, tensor in before.items()))
    assert moved[1] < moved[0] / 1.5


def test_resuming_with_another_penalty_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit(small_module(local=local(Proximal(0.1))), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ConfigurationError, match=r"penalty \(Proximal\(proximal_mu=0.1\)\) but got none"):
        fit(small_module(local=local()), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))


@given(st.integers(2, 9), st.integers(1, 40), st.floats(0, 1))
def test_stragglers_do_fewer_epochs_but_at_least_one(epochs: int, cohort: int, share: float) -> None:
    training = LocalTraining(epochs=epochs, stragglers=share)
    drawn = training.epochs_of(cohort, torch.Generator().manual_seed(3))
    fewer = [number for number in drawn if number < epochs]
    assert len(drawn) == cohort
    assert len(fewer) == round(share * cohort)
    assert all(1 <= number <= epochs for number in drawn)
    assert drawn == training.epochs_of(cohort, torch.Generator().manual_seed(3))


def test_partial_work_is_counted_in_flops_and_in_the_mean(fit: Fit) -> None:
    whole, partial = small_module(local=local(epochs=4)), small_module(local=local(epochs=4, stragglers=1.0))
    fit(whole, rounds=2, name="whole", limit_val_batches=0)
    fit(partial, rounds=2, name="partial", limit_val_batches=0)
    assert 0 < partial.ledger.total.flops < whole.ledger.total.flops
    assert partial.ledger.total.up_bytes == whole.ledger.total.up_bytes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Proximal(0.0), "proximal_mu above 0"),
        (lambda: Proximal(1e300), "proximal_mu above 0 and at most 1e.06 but got 1e.300"),
        (lambda: FedDyn(-1.0), "alpha from 1e-06 to 1e.06 for FedDyn but got -1.0"),
        (lambda: FedDyn(1e-300), "alpha from"),
        (lambda: FedDyn(1e300), "alpha from"),
        (lambda: FedDyn(float("nan")), "alpha from"),
        (lambda: LocalTraining(stragglers=1.5, epochs=2), r"stragglers in \[0, 1\]"),
        (lambda: LocalTraining(stragglers=0.5), "epochs of at least 2"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
