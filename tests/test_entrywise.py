"""The coordinate median and the trimmed mean: every entry against NumPy over its holders, oracles, whole rounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from hetfl import FedAvg, FederatedModule, Level
from hetfl.aggregators import Aggregator, CoordinateMedian, TrimmedMean
from hetfl.aggregators.order import comparators, middle_mean, middle_means
from hetfl.compression import DynamicRange, ErrorFeedback, RandomK, TopK
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.part import Part
from hetfl.piece import Facts, Piece
from hetfl.selection import Uniform
from hetfl.testing import check_aggregator
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate
from tests.conftest import small_data, small_module
from tests.robust_cases import Array, Client, cohort, column, played, scaled, spread

Fit = Callable[..., Trainer]
Rule = Callable[[Array], float]


def trimmed(values: Array, share: float) -> float:
    ordered = np.sort(values)
    cut = min(math.ceil(round(share * len(ordered), 9)), (len(ordered) - 1) // 2)
    return float(ordered[cut : len(ordered) - cut].mean())


def median(values: Array) -> float:
    return float(np.median(values))


CASES: list[tuple[Callable[..., Aggregator], Rule]] = [
    (CoordinateMedian, median),
    (partial(TrimmedMean, 0.2), partial(trimmed, share=0.2)),
    (partial(TrimmedMean, 0.45), partial(trimmed, share=0.45)),
]
COHORTS: dict[str, Callable[[], list[Client]]] = {
    "one level": lambda: cohort("aaaaaa"),
    "nested levels": lambda: cohort("abcabcabccc"),
    "channels": lambda: cohort("abcabca", positions=True),
    "masks": lambda: cohort("abcabcab", masked=True),
    "masks of channels": lambda: cohort("abcabcab", positions=True, masked=True),
}


@pytest.mark.parametrize(("make", "rule"), CASES)
@pytest.mark.parametrize("name", COHORTS)
@pytest.mark.parametrize("fewest", [1, 3])
def test_every_entry_is_the_rule_over_its_holders(
    make: Callable[..., Aggregator], rule: Rule, name: str, fewest: int
) -> None:
    clients = COHORTS[name]()
    steps, holders = played(make(min_holders=fewest, outside="keep"), clients)
    for tensor, values in spread(clients).items():
        for where in np.ndindex(values.shape[1:]):
            held = column(values, where)
            enough = len(held) >= max(1, fewest)
            assert holders[tensor][where] == (len(held) if enough else 0)
            assert steps[tensor][where] == pytest.approx(rule(held) if enough else 0.0, abs=1e-12)


@pytest.mark.parametrize("size", range(1, 11))
def test_a_network_sorts_all_zeros_and_ones_and_so_everything(size: int) -> None:
    patterns = np.array(list(itertools.product((0.0, 1.0), repeat=size))).T
    for low in range(size):
        for high in range(low + 1, size + 1):
            mean = middle_mean(torch.from_numpy(patterns.copy()), (low, high))
            assert np.allclose(mean.numpy(), np.sort(patterns, axis=0)[low:high].mean(0))


def test_a_network_leaves_out_comparators_that_the_middle_does_not_need() -> None:
    assert [len(comparators(20, ranks)) for ranks in ((0, 20), (9, 11))] == [97, 81]
    assert comparators(1, (0, 1)) == ()


def test_columns_with_different_numbers_of_values_have_their_own_ranks() -> None:
    values = torch.tensor([[5.0, 4.0, math.inf], [1.0, math.inf, math.inf], [9.0, 2.0, math.inf]])
    counts = torch.tensor([3, 2, 0])
    assert middle_means(values, counts, CoordinateMedian().ranks).tolist() == [5.0, 3.0, 0.0]


ORACLE: list[tuple[Callable[[], Aggregator], list[float]]] = [
    (partial(TrimmedMean, 0.2, 1), [2.0, 2.0, 1.0]),
    (partial(CoordinateMedian, 1), [2.0, 2.0, 1.0]),
]


@pytest.mark.parametrize(("make", "expected"), ORACLE)
@pytest.mark.parametrize("double", [True, False])
def test_a_trimmed_share_is_rounded_up_where_few_clients_hold_an_entry(
    make: Callable[[], Aggregator], expected: list[float], double: bool
) -> None:
    """Columns (1, 2, 3, 100, 0), (1, 2, 100), (1): rounded down, the second one would have a mean of 34.3."""
    dtype = torch.float64 if double else torch.float32
    rows = [[1.0, 1.0, 1.0], [2.0, 2.0], [3.0], [100.0, 100.0], [0.0]]
    aggregator = make()
    aggregator.reset({"w": torch.zeros(3, dtype=dtype)})
    for client, row in enumerate(rows):
        part = Part({"w": (slice(0, len(row)),)})
        aggregator.update(DenseUpdate(torch.tensor(row, dtype=dtype)), part, Report(client, "a", 1, 0.0))
    steps, holders = aggregator.compute()
    assert steps["w"].tolist() == expected
    assert holders["w"].tolist() == [5.0, 3.0, 1.0]


@pytest.mark.parametrize("make", [partial(CoordinateMedian, 1), partial(TrimmedMean, 0.3, 2), CoordinateMedian])
def test_every_rule_fulfils_the_contract(make: Callable[[], Aggregator]) -> None:
    check_aggregator(make)


@pytest.mark.parametrize("name", COHORTS)
def test_the_order_of_clients_changes_no_bit(name: str) -> None:
    clients = COHORTS[name]()
    first = played(TrimmedMean(), clients)
    for order in (clients[::-1], clients[3:] + clients[:3]):
        again = played(TrimmedMean(), order)
        for one, other in zip(first, again, strict=True):
            assert all(np.array_equal(one[tensor], other[tensor]) for tensor in one)


@pytest.mark.parametrize("name", COHORTS)
def test_files_in_place_of_memory_change_no_bit(name: str, tmp_path: Path) -> None:
    clients = COHORTS[name]()
    aggregator = CoordinateMedian(most_bytes=200)
    aggregator.bind(str(tmp_path / "waiting"))
    for one, other in zip(played(CoordinateMedian(), clients), played(aggregator, clients), strict=True):
        assert all(np.array_equal(one[tensor], other[tensor]) for tensor in one)
    assert (tmp_path / "waiting").is_dir()
    assert not list((tmp_path / "waiting").iterdir())  # files without a name take no place after the process


def test_entries_with_few_holders_move_by_a_clipped_mean() -> None:
    """Two clients of the largest level: one is ten times as long as usual, in its vector and in its buffer."""
    clients = cohort("abbbbccccc")
    clients.append(Client(*scaled(cohort("a", seed=5)[0], 10.0).arguments[:2], Report(10, "a", 1, 0.0)))
    values = spread(clients)
    norms = [float(np.linalg.norm(each.update.to_dense()) / math.sqrt(each.update.size)) for each in clients]
    usual = float(np.median([norm for norm, each in zip(norms, clients, strict=True) if each.report.level == "b"]))
    factors = {k: min(1.0, usual / norms[k]) for k in (0, 10)}
    steps, holders = played(CoordinateMedian(), clients)
    plain, _ = played(CoordinateMedian(outside="mean"), clients)
    for where in [(5, 0, 0), (0, 4, 1), (4, 3, 0)]:
        held = values["kernel"][(slice(None), *where)]
        assert holders["kernel"][where] == 2
        assert steps["kernel"][where] == pytest.approx((factors[0] * held[0] + factors[10] * held[10]) / 2)
        assert plain["kernel"][where] == pytest.approx((held[0] + held[10]) / 2)
    assert abs(steps["running_mean"][5]) < abs(plain["running_mean"][5]) / 2
    assert steps["kernel"][0, 0, 0] == plain["kernel"][0, 0, 0] == np.median(values["kernel"][:, 0, 0, 0])


def test_an_update_that_makes_a_variance_negative_is_refused() -> None:
    part = Part({"w": (slice(0, 1),), "norm.running_var": (slice(0, 2),)})
    aggregator = CoordinateMedian()
    aggregator.reset({"w": torch.zeros(1), "norm.running_var": torch.tensor([1.0, 0.5, 3.0])})
    right = DenseUpdate(torch.zeros(1), exact=torch.tensor([-1.0, 2.0]))
    aggregator.update(right, part, Report(0, "a", 1, 0.0))
    with pytest.raises(RefusedUpdate, match="variances of at least 0 in norm.running_var but got -0.5"):
        aggregator.update(replace_exact(right, [0.0, -1.0]), part, Report(1, "a", 1, 0.0))
    assert aggregator.compute()[0]["norm.running_var"].tolist() == [-1.0, 2.0, 0.0]


def replace_exact(update: DenseUpdate, values: Sequence[float]) -> DenseUpdate:
    return update.with_exact(torch.tensor(values))


@pytest.mark.parametrize("compressor", [TopK(0.1), RandomK(0.5)])
def test_compressors_that_leave_entries_out_are_refused_by_name(fit: Fit, compressor: Any) -> None:
    module = small_module(aggregator=CoordinateMedian(), uplink=ErrorFeedback(compressor))
    with pytest.raises(ConfigurationError, match="sends every entry for CoordinateMedian, .* leaves entries out"):
        fit(module, small_data(), rounds=1)


def test_a_sparse_update_of_a_client_is_refused_alone() -> None:
    aggregator = CoordinateMedian()
    aggregator.setup(Facts())
    aggregator.reset({"w": torch.zeros(3)})
    sparse = SparseUpdate(torch.ones(1), torch.tensor([1]), 3)
    with pytest.raises(RefusedUpdate, match="every entry for CoordinateMedian but got a sparse one"):
        aggregator.update(sparse, Part({"w": (slice(0, 3),)}), Report(0, "a", 1, 0.0))


def test_quantised_updates_are_taken(fit: Fit) -> None:
    fit(small_module(aggregator=CoordinateMedian(), uplink=ErrorFeedback(DynamicRange(8))), small_data(), rounds=1)


class Updates(Piece):
    """Keeps the vectors of accepted updates."""

    def __init__(self) -> None:
        self.vectors: list[Array] = []

    def observe(self, update: Any, index: Any, report: Report) -> None:
        self.vectors.append(update.whole().numpy())


@pytest.mark.parametrize(("make", "rule"), CASES)
def test_a_round_of_fedavg_takes_the_step_of_numpy(fit: Fit, make: Callable[..., Aggregator], rule: Rule) -> None:
    module = small_module(FedAvg, levels={"a": Level("a")}, aggregator=make(), selection=Uniform(5))
    seen = Updates()
    module.seen = seen  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in module.net.named_parameters()}
    fit(module, small_data(), rounds=1, limit_val_batches=0)
    step = [rule(values) for values in np.stack(seen.vectors).astype(np.float64).T]
    after = dict(module.net.named_parameters())
    moved = torch.cat([(after[name] - before[name]).detach().flatten() for name in before])
    assert np.allclose(moved.numpy(), step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [CoordinateMedian, TrimmedMean])
def test_a_resumed_run_has_the_same_bits(fit: Fit, tmp_path: Path, make: Callable[[], Aggregator]) -> None:
    def module() -> FederatedModule:
        return small_module(aggregator=make(), selection=Uniform(5))

    whole, first, second = module(), module(), module()
    fit(whole, small_data(), rounds=3, name="whole", limit_val_batches=0)
    fit(first, small_data(), rounds=1, name="begun", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, small_data(), rounds=3, name="resumed", limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoordinateMedian(0), "min_holders of at least 1 but got 0"),
        (lambda: CoordinateMedian(outside="drop"), "outside"),  # type: ignore[arg-type]
        (lambda: TrimmedMean(0.5), r"share in \[0, 0.5\) for TrimmedMean but got 0.5"),
        (lambda: CoordinateMedian(most_bytes=-1), "most_bytes of at least 0 or null but got -1"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
