"""Aggregators: means over holders against a NumPy loop over every scalar, and one contract for all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hetfl.aggregators import (
    Aggregator,
    CoordinateMedian,
    FedNova,
    HolderMean,
    ProductMean,
    QFedAvg,
    SampleMean,
    SelectionMean,
    StackedProducts,
    TrimmedMean,
    ZeroPadMean,
)
from hetfl.aggregators.server_step import server_step
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.part import Part, index_layout
from hetfl.testing import check_aggregator
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate

Case = list[tuple[Index, Tensor, Report]]
ALL: list[tuple[Callable[[], Aggregator], Callable[[Report], float]]] = [
    (HolderMean, lambda report: 1.0),
    (SampleMean, lambda report: float(report.samples)),
]


def tensors() -> dict[str, Tensor]:
    return {"w": torch.zeros(4, 3, dtype=torch.float64), "b": torch.zeros(4, dtype=torch.float64)}


@st.composite
def cohorts(draw: st.DrawFn) -> Case:
    """Draw clients with prefix blocks whose rows may be restricted to some labels."""
    clients: Case = []
    for client in range(draw(st.integers(1, 5))):
        columns = draw(st.integers(1, 3))
        rows = draw(st.sets(st.integers(0, 3), min_size=1))
        row: slice | Tensor = slice(0, draw(st.integers(1, 4))) if draw(st.booleans()) else torch.tensor(sorted(rows))
        index: Index = {"w": (row, slice(0, columns)), "b": (row,)}
        size = index_layout(index).size
        values = draw(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size))
        report = Report(client, "a", draw(st.integers(1, 40)), 0.0, 0.0)
        clients.append((index, torch.tensor(values, dtype=torch.float64), report))
    return clients


def brute_force(
    clients: Case, weight: Callable[[Report], float]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Average every scalar separately over the clients that hold it."""
    sums = {name: np.zeros(tuple(t.shape)) for name, t in tensors().items()}
    counts = {name: np.zeros(tuple(t.shape)) for name, t in tensors().items()}
    for index, values, report in clients:
        position = 0
        for name, entry in index.items():
            axes = [range(p.start, p.stop) if isinstance(p, slice) else p.tolist() for p in entry]
            for where in np.ndindex(*[len(axis) for axis in axes]):
                target = tuple(axis[i] for axis, i in zip(axes, where, strict=True))
                sums[name][target] += weight(report) * float(values[position])
                counts[name][target] += weight(report)
                position += 1
    return {n: np.divide(sums[n], counts[n], out=np.zeros_like(sums[n]), where=counts[n] > 0) for n in sums}, counts


COHORT = [partial(SampleMean, denominator="cohort"), partial(HolderMean, denominator="cohort")]


FACTORS: list[Callable[[], Aggregator]] = [ProductMean, ZeroPadMean, partial(StackedProducts, {})]
"""Rules for low-rank factors; these tensors have none, so they are plain means. tests/test_lora_rules.py has theirs."""


@pytest.mark.parametrize("make", [HolderMean, SampleMean, SelectionMean, QFedAvg, *COHORT, *FACTORS])
def test_every_aggregator_fulfils_the_contract(make: Callable[[], Aggregator]) -> None:
    check_aggregator(make)


@pytest.mark.parametrize(("make", "weight"), ALL)
@settings(max_examples=60)
@given(clients=cohorts())
def test_every_scalar_is_the_mean_over_its_holders(
    make: Callable[[], Aggregator], weight: Callable[[Report], float], clients: Case
) -> None:
    aggregator = make()
    for _ in range(2):  # the second round must not contain values of the first
        aggregator.reset(tensors())
        for index, values, report in clients:
            aggregator.update(DenseUpdate(values), index, report)
        delta, holders = aggregator.compute()
        expected, counts = brute_force(clients, weight)
        for name in expected:
            assert np.allclose(delta[name].numpy(), expected[name], atol=1e-12)
            assert np.array_equal(holders[name].numpy(), counts[name])


@pytest.mark.parametrize(("make", "weight"), ALL)
@settings(max_examples=60)
@given(clients=cohorts())
def test_a_mean_over_the_cohort_takes_clients_that_do_not_hold_an_entry_as_zero(
    make: Callable[..., Aggregator], weight: Callable[[Report], float], clients: Case
) -> None:
    aggregator = make(denominator="cohort")
    for _ in range(2):  # the second round must not contain weights of the first
        aggregator.reset(tensors())
        for index, values, report in clients:
            aggregator.update(DenseUpdate(values), index, report)
        delta, holders = aggregator.compute()
    means, counts = brute_force(clients, weight)
    total = sum(weight(report) for _, _, report in clients)
    for name, mean in means.items():
        assert np.allclose(delta[name].numpy(), mean * counts[name] / total, atol=1e-12)
        assert np.array_equal(holders[name].numpy(), counts[name])


@pytest.mark.parametrize(
    ("denominator", "expected"), [("cohort", [1.2, 2.2, 3.6, 4.6]), ("holders", [1.4, 2.4, 3.6, 4.6])]
)
@pytest.mark.parametrize("mask", [False, True])
def test_r2sp_averages_models_that_the_server_fills_up(
    denominator: Literal["holders", "cohort"], expected: list[float], mask: bool
) -> None:
    """One client holds all of (1, 2, 3, 4) and adds 0.4, the other holds the last two of them and adds 0.8."""
    whole = Part({"w": (slice(0, 4),)})
    half = Part(whole, torch.tensor([False, False, True, True])) if mask else Part({"w": (slice(2, 4),)})
    theta, aggregator = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), HolderMean(denominator)
    aggregator.reset({"w": theta})
    for client, (part, step) in enumerate(((whole, 0.4), (half, 0.8))):
        update = DenseUpdate(torch.full((part.size,), step, dtype=torch.float64))
        aggregator.update(update, part, Report(client, "a", 1, 0.0))
    delta, _ = aggregator.compute()
    assert (theta + delta["w"]).tolist() == pytest.approx(expected, rel=1e-15)


def test_entries_without_holders_keep_their_bits_if_the_mean_is_over_the_cohort() -> None:
    weight = nn.Parameter(torch.rand(4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    before, aggregator = weight.detach().clone(), HolderMean("cohort")
    for held in (slice(0, 3), slice(1, 2)):
        aggregator.reset({"w": weight})
        for client in range(2):
            index = {"w": (held,)} if client else {"w": (slice(1, 2),)}
            update = DenseUpdate(torch.ones(index_layout(index).size))
            aggregator.update(update, index, Report(client, "a", 1, 0.0))
        delta, holders = aggregator.compute()
        last = weight.detach().clone()
        server_step(optimizer, optimizer.step, {"w": weight}, delta, holders)
        moved = torch.arange(4)[held]
        assert (weight[moved] != last[moved]).all()
        assert torch.equal(weight[holders["w"] == 0], last[holders["w"] == 0])
    assert weight[3] == before[3]


def test_an_unknown_denominator_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Expected denominator to be holders or cohort but got 'all'"):
        SampleMean("all")  # type: ignore[arg-type]


@pytest.mark.parametrize(("make", "weight"), ALL)
def test_the_divisor_counts_holders_not_senders(
    make: Callable[[], Aggregator], weight: Callable[[Report], float]
) -> None:
    aggregator = make()
    aggregator.reset({"b": torch.zeros(2)})
    index = {"b": (slice(0, 2),)}
    report = Report(0, "a", 3, 0.0, 0.0)
    aggregator.update(SparseUpdate(torch.tensor([6.0]), torch.tensor([0]), 2), index, report)
    aggregator.update(SparseUpdate(torch.tensor([2.0]), torch.tensor([1]), 2), index, report)
    assert aggregator.compute()[0]["b"].tolist() == [3.0, 1.0]


@pytest.mark.parametrize(("make", "weight"), ALL)
def test_the_exact_block_is_assigned_to_the_buffers(
    make: Callable[[], Aggregator], weight: Callable[[Report], float]
) -> None:
    aggregator = make()
    aggregator.reset({"w": torch.zeros(2), "running_mean": torch.zeros(1)})
    index = {"w": (slice(0, 2),), "running_mean": (slice(0, 1),)}
    aggregator.update(DenseUpdate(torch.tensor([1.0, 2.0]), exact=torch.tensor([5.0])), index, Report(0, "a", 1, 0, 0))
    delta, _ = aggregator.compute()
    assert delta["w"].tolist() == [1.0, 2.0]
    assert delta["running_mean"].tolist() == [5.0]


@pytest.mark.parametrize(("make", "weight"), ALL)
@settings(max_examples=30)
@given(blocks=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(1, 9)), max_size=5))
def test_kernels_and_single_entries_are_means_over_their_holders(
    make: Callable[[], Aggregator],
    weight: Callable[[Report], float],
    blocks: list[tuple[int, int, int]],
) -> None:
    whole = {"kernel": torch.zeros(4, 3, 2, 2), "scale": torch.zeros(()), "unheld": torch.zeros(2)}
    aggregator = make()
    aggregator.reset({"kernel": torch.zeros(9)})  # of another model; its values must be cleared
    aggregator.reset(whole)
    filled = {name: np.full((len(blocks), *tensor.shape), np.nan) for name, tensor in whole.items()}
    weights = np.zeros(len(blocks))
    for k, (rows, columns, samples) in enumerate(blocks):
        index: Index = {"kernel": (slice(0, rows), slice(0, columns), slice(0, 2), slice(0, 2)), "scale": ()}
        values = torch.arange(rows * columns * 4 + 1.0) + k
        report = Report(k, "a", samples, 0.0, 0.0)
        aggregator.update(DenseUpdate(values), index, report)
        filled["kernel"][k, :rows, :columns] = values[:-1].view(rows, columns, 2, 2)
        filled["scale"][k] = values[-1]
        weights[k] = weight(report)
    delta, holders = aggregator.compute()
    for name, blocks_K in filled.items():
        each = weights.reshape(-1, *[1] * whole[name].dim()) * ~np.isnan(blocks_K)
        count = each.sum(0)
        mean = np.divide((each * np.nan_to_num(blocks_K)).sum(0), count, out=np.zeros_like(count), where=count > 0)
        assert np.allclose(delta[name].numpy(), mean, rtol=1e-6)
        assert np.array_equal(holders[name].numpy(), count)


@pytest.mark.parametrize(("make", "weight"), ALL)
def test_holders_of_part_of_a_kernel_are_counted_only_there(
    make: Callable[[], Aggregator], weight: Callable[[Report], float]
) -> None:
    """3x3 kernels, 1x1 parts in a corner of them, a row, and some columns; holders are counted per entry."""
    parts: list[tuple[slice | Tensor, slice | Tensor]] = [
        (slice(0, 3), slice(0, 3)),
        (slice(0, 1), slice(0, 1)),
        (slice(1, 2), slice(0, 3)),
        (slice(0, 3), torch.tensor([0, 2])),
    ]
    aggregator, random = make(), np.random.default_rng(0)
    aggregator.reset({"kernel": torch.zeros(2, 2, 3, 3, dtype=torch.float64)})
    above, below = np.zeros((2, 2, 3, 3)), np.zeros((2, 2, 3, 3))
    for k, (rows, columns) in enumerate(parts):
        index: Index = {"kernel": (slice(0, 2), slice(0, 1 + k % 2), rows, columns)}
        mesh = np.ix_(*[np.r_[part] if isinstance(part, slice) else part.numpy() for part in index["kernel"]])
        values, report = random.normal(size=above[mesh].shape), Report(k, "a", k + 2, 0.0, 0.0)
        aggregator.update(DenseUpdate(torch.from_numpy(values.ravel())), index, report)
        above[mesh] += weight(report) * values
        below[mesh] += weight(report)
    delta, holders = aggregator.compute()
    assert np.array_equal(holders["kernel"].numpy(), below)
    assert len(np.unique(below)) > 3
    expected = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    np.testing.assert_allclose(delta["kernel"].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("make", [HolderMean, FedNova, CoordinateMedian, TrimmedMean])
def test_frozen_parameters_take_no_memory(make: Callable[[], Aggregator]) -> None:
    """No operation of a round makes a tensor of the size of the frozen base."""

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
            self.bytes = max([self.bytes, *(each.untyped_storage().nbytes() for each in made)])
            return result

    tensors = {"w": nn.Parameter(torch.zeros(8)), "base": nn.Parameter(torch.ones(1000, 1000), requires_grad=False)}
    rule, part, largest = make(), Part({"w": (slice(0, 8),)}), Largest()  # type: ignore[no-untyped-call]
    with largest:
        rule.reset(tensors)
        for client in range(4):
            report = Report(client, "a", 5, 0.0, lr=0.1, steps=3)
            rule.update(DenseUpdate(torch.full((8,), client + 1.0)), part, report)
        steps, holders = rule.compute()
    assert largest.bytes < 1_000_000
    assert torch.allclose(steps["w"], torch.tensor(2.5))
    assert steps["base"].shape == holders["base"].shape == (1000, 1000)
    assert not steps["base"].any()
    assert not holders["base"].any()
