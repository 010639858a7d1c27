"""q-FedAvg against the formula in NumPy, entry by entry, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl import ConfigurationError
from hetfl.aggregators import HolderMean, QFedAvg
from hetfl.layout import Index
from hetfl.part import index_layout
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate

Case = list[tuple[Index, Tensor, Report]]
LR = 0.05


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"w": torch.zeros(4, 3, dtype=dtype), "b": torch.zeros(4, dtype=dtype)}


@st.composite
def cohorts(draw: st.DrawFn) -> Case:
    """Draw clients with prefix blocks whose rows may be restricted, and losses of any size."""
    clients: Case = []
    for client in range(draw(st.integers(1, 5))):
        rows = draw(st.sets(st.integers(0, 3), min_size=1))
        row: slice | Tensor = slice(0, draw(st.integers(1, 4))) if draw(st.booleans()) else torch.tensor(sorted(rows))
        index: Index = {"w": (row, slice(0, draw(st.integers(1, 3)))), "b": (row,)}
        size = index_layout(index).size
        values = draw(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size))
        loss = draw(st.sampled_from([0.0, 1e-3, 0.7, 2.3, 40.0]))
        report = Report(client, "a", draw(st.integers(1, 40)), 9.9, 0.0, lr=LR, initial_loss=loss)
        clients.append((index, torch.tensor(values, dtype=torch.float64), report))
    return clients


def aggregated(aggregator: HolderMean, clients: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    aggregator.reset(tensors(dtype))
    for index, values, report in clients:
        aggregator.update(DenseUpdate(values.to(dtype)), index, report)
    return aggregator.compute()[0]


def by_formula(clients: Case, q: float) -> dict[str, np.ndarray]:
    """Compute algorithm 2 of the paper for every scalar separately: w − Σ Δ_k / Σ h_k over its holders."""
    step = {name: np.zeros(tuple(t.shape)) for name, t in tensors().items()}
    bound = {name: np.zeros(tuple(t.shape)) for name, t in tensors().items()}
    for index, values, report in clients:
        assert report.initial_loss is not None
        loss, lipschitz = np.float64(report.initial_loss + 1e-10), 1 / report.lr
        gradient = lipschitz * -values.numpy()  # Δw = L (w_t − w_k)
        h = q * loss ** (q - 1) * float((gradient**2).sum()) + lipschitz * loss**q
        position = 0
        for name, entry in index.items():
            axes = [range(p.start, p.stop) if isinstance(p, slice) else p.tolist() for p in entry]
            for where in np.ndindex(*[len(axis) for axis in axes]):
                target = tuple(axis[i] for axis, i in zip(axes, where, strict=True))
                step[name][target] -= loss**q * gradient[position]
                bound[name][target] += h
                position += 1
    return {n: np.divide(step[n], bound[n], out=np.zeros_like(step[n]), where=bound[n] > 0) for n in step}


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
@settings(max_examples=60)
@given(clients=cohorts())
def test_every_scalar_equals_the_papers_formula(q: float, clients: Case) -> None:
    aggregator = QFedAvg(q)
    for _ in range(2):  # the second round must not contain values of the first
        delta = aggregated(aggregator, clients)
    for name, expected in by_formula(clients, q).items():
        assert np.allclose(delta[name].numpy(), expected, rtol=1e-9, atol=1e-300)


@settings(max_examples=60)
@given(clients=cohorts())
def test_q_of_0_equals_the_plain_mean_bit_for_bit(clients: Case) -> None:
    for dtype in (torch.float32, torch.float64):
        fair, plain = aggregated(QFedAvg(0.0), clients, dtype), aggregated(HolderMean(), clients, dtype)
        assert all(torch.equal(fair[name], plain[name]) for name in plain)


def two_clients(losses: tuple[float, float], steps: tuple[float, float] = (1.0, -1.0)) -> Case:
    index: Index = {"b": (slice(0, 4),)}
    return [
        (index, torch.full((4,), step, dtype=torch.float64), Report(k, "a", 10, 0.0, 0.0, lr=LR, initial_loss=loss))
        for k, (loss, step) in enumerate(zip(losses, steps, strict=True))
    ]


def test_a_larger_loss_has_a_larger_weight_that_grows_with_q() -> None:
    # Ratio of the clients' weights in the numerator: (3 / 1)^q.
    for q in (0.0, 0.5, 1.0, 5.0):
        both = aggregated(QFedAvg(q), two_clients((3.0, 1.0)))["b"][0].item()
        alone = [aggregated(QFedAvg(q), two_clients((3.0, 1.0), s))["b"][0].item() for s in ((1.0, 0.0), (0.0, 1.0))]
        assert (both > 0) == (q > 0)
        if q == 0:
            assert alone[0] == alone[1] == 0.5
        else:
            assert alone[0] > alone[1]


@pytest.mark.parametrize("q", [0.001, 1.0, 5.0, 20.0])
@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.0, 1e6), (1e6, 0.0), (1e-9, 1e-8), (1e30, 1e30)])
def test_the_result_is_finite_for_the_smallest_and_largest_losses(q: float, losses: tuple[float, float]) -> None:
    delta = aggregated(QFedAvg(q), two_clients(losses, (1.0, 0.5)), torch.float32)
    assert bool(delta["b"].isfinite().all())
    assert 0 <= delta["b"].min() <= delta["b"].max() <= 1


def test_losses_of_equal_ratio_have_equal_weights() -> None:
    """The step is homogeneous: losses and squared norms over η times the same factor change nothing."""
    one = aggregated(QFedAvg(2.0), two_clients((3.0, 1.0)))["b"]
    scaled = two_clients((3e-4, 1e-4), (1e-2, -1e-2))
    assert torch.allclose(aggregated(QFedAvg(2.0), scaled)["b"], 1e-2 * one, rtol=1e-5)


def test_unsent_entries_count_as_0_and_buffers_are_not_scaled() -> None:
    aggregator = QFedAvg(1.0)
    aggregator.reset({"b": torch.zeros(2), "running": torch.zeros(1)})
    index: Index = {"b": (slice(0, 2),), "running": (slice(0, 1),)}
    update = SparseUpdate(torch.tensor([3.0]), torch.tensor([1]), 2, exact=torch.tensor([5.0]))
    aggregator.update(update, index, Report(0, "a", 1, 0.0, 0.0, lr=0.5, initial_loss=2.0))
    delta, holders = aggregator.compute()
    # One holder: F u/η / (q ‖u‖²/η² + F/η) with F = 2, η = 0.5: 12 / (36 + 4).
    assert delta["b"].tolist() == [0.0, pytest.approx(0.3)]
    assert delta["running"].tolist() == [pytest.approx(5.0)]
    assert bool((holders["b"] > 0).all())


def test_an_entry_without_holders_does_not_change() -> None:
    aggregator = QFedAvg(1.0)
    aggregator.reset({"b": torch.zeros(3)})
    report = Report(0, "a", 1, 0.0, 0.0, lr=0.5, initial_loss=2.0)
    aggregator.update(DenseUpdate(torch.ones(2)), {"b": (slice(0, 2),)}, report)
    delta, holders = aggregator.compute()
    assert (delta["b"][2].item(), holders["b"][2].item()) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (Report(3, "a", 1, 0.0, 0.0, lr=0.1), "finite loss of at least 0 from client 3 for QFedAvg but got None"),
        (Report(3, "a", 1, 0.0, 0.0, lr=0.1, initial_loss=math.nan), "client 3 .* got nan"),
        (Report(3, "a", 1, 0.0, 0.0, lr=0.1, initial_loss=math.inf), "client 3 .* got inf"),
        (Report(3, "a", 1, 0.0, 0.0, lr=0.1, initial_loss=-1.0), "client 3 .* got -1.0"),
        (Report(3, "a", 1, 0.0, 0.0, initial_loss=1.0), "learning rate of clients above 0 for QFedAvg but got 0.0"),
    ],
)
def test_reports_without_a_usable_loss_or_rate_are_refused(report: Report, message: str) -> None:
    aggregator = QFedAvg(1.0)
    aggregator.reset({"b": torch.zeros(1)})
    with pytest.raises(ConfigurationError, match=message):
        aggregator.update(DenseUpdate(torch.ones(1)), {"b": (slice(0, 1),)}, report)


@pytest.mark.parametrize("q", [-0.1, math.nan, math.inf])
def test_q_must_be_a_finite_number_of_at_least_0(q: float) -> None:
    with pytest.raises(ConfigurationError, match=f"finite q of at least 0 for QFedAvg but got {q}"):
        QFedAvg(q)
