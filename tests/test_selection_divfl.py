"""DivFL: greedy facility location against exhaustive search, distances entry by entry, and weights of clients."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.aggregators import HolderMean, SelectionMean
from hetfl.layout import Index, IndexEntry
from hetfl.part import index_layout
from hetfl.piece import Facts
from hetfl.selection import DivFL, divfl
from hetfl.selection.divfl import distance
from hetfl.selection.facility_location import lazy_greedy, objective, stochastic_greedy
from hetfl.store import DiskStore
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.test_selection import Table

SIZES = [10] * 8


@st.composite
def matrices(draw: st.DrawFn) -> list[list[int]]:
    """Draw small integer distances with many ties, from each of C rows to V columns."""
    rows, columns = draw(st.integers(1, 10)), draw(st.integers(1, 10))
    return [draw(st.lists(st.integers(0, 5), min_size=columns, max_size=columns)) for _ in range(rows)]


def total(rows: list[list[int]], chosen: tuple[int, ...] | list[int]) -> int:
    return sum(min(rows[i][k] for i in chosen) for k in range(len(rows[0])))


def plain_greedy(rows: list[list[int]], count: int) -> list[int]:
    """Add the row that makes the objective smallest, the first of equals, until there are enough rows."""
    chosen: list[int] = []
    while len(chosen) < min(count, len(rows)):
        left = [row for row in range(len(rows)) if row not in chosen]
        chosen.append(min(left, key=lambda row: (total(rows, [*chosen, row]), row)))
    return chosen


@settings(max_examples=120)
@given(rows=matrices(), count=st.integers(1, 6))
def test_lazy_greedy_equals_plain_greedy_and_is_near_the_optimum(rows: list[list[int]], count: int) -> None:
    distances_CV = torch.tensor(rows, dtype=torch.float64)
    chosen = lazy_greedy(distances_CV, count)
    assert chosen == plain_greedy(rows, count)
    everything = torch.Generator().manual_seed(0)
    assert chosen == stochastic_greedy(distances_CV, count, len(rows), everything)
    values = [objective(distances_CV, chosen[:size]) for size in range(1, len(chosen) + 1)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == total(rows, chosen)
    # The guarantee is on the decrease from a row that is farthest from all columns.
    far = len(rows[0]) * max(map(max, rows))
    best = min(total(rows, subset) for subset in itertools.combinations(range(len(rows)), len(chosen)))
    assert far - values[-1] >= (1 - 1 / math.e) * (far - best)


@given(rows=matrices(), count=st.integers(1, 6), sample=st.integers(1, 4), seed=st.integers(0, 9))
def test_stochastic_greedy_is_repeatable_and_chooses_distinct_rows(
    rows: list[list[int]], count: int, sample: int, seed: int
) -> None:
    distances_CV = torch.tensor(rows, dtype=torch.float64)
    one, two = (stochastic_greedy(distances_CV, count, sample, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one == two
    assert len(set(one)) == len(one) == min(count, len(rows))


def test_the_first_choice_is_the_medoid() -> None:
    points = torch.tensor([0.0, 1.0, 2.0, 2.5, 40.0], dtype=torch.float64)
    assert lazy_greedy((points[:, None] - points).abs(), 2) == [2, 4]


Scalars = dict[tuple[str, tuple[int, ...]], float]


@st.composite
def updates(draw: st.DrawFn) -> tuple[Index, DenseUpdate, Scalars]:
    """Draw an index of prefixes and chosen rows with values, some tensors absent, and the same scalar by scalar."""
    index: dict[str, IndexEntry] = {}
    shapes = {"w": (3, 2), "head": (4,)}
    for name in draw(st.sampled_from([("w",), ("head",), ("w", "head")])):
        first: slice | Tensor = slice(0, draw(st.integers(1, shapes[name][0])))
        if draw(st.booleans()):
            first = torch.tensor(sorted(draw(st.sets(st.integers(0, shapes[name][0] - 1), min_size=1))))
        index[name] = (first, *(slice(0, draw(st.integers(1, size))) for size in shapes[name][1:]))
    size = index_layout(index).size
    values = draw(st.lists(st.integers(-4, 4), min_size=size, max_size=size))
    scalars: Scalars = {}
    for name, entry in index.items():
        axes = [range(p.start, p.stop) if isinstance(p, slice) else p.tolist() for p in entry]
        for where in itertools.product(*axes):
            scalars[name, where] = values[len(scalars)]
    index["running"] = (slice(0, 2),)  # a float buffer: sent in the exact block, and not part of a gradient
    update = DenseUpdate(torch.tensor(values, dtype=torch.float64), exact=torch.ones(2, dtype=torch.float64))
    return index, update, scalars


def entrywise(one: Scalars, other: Scalars) -> float:
    common = one.keys() & other.keys()
    if common:
        return math.sqrt(sum((one[where] - other[where]) ** 2 for where in common) / len(common))
    return math.sqrt(sum(sum(v * v for v in each.values()) / max(1, len(each)) for each in (one, other)))


@settings(max_examples=80)
@given(drawn=st.lists(updates(), min_size=2, max_size=6), lr=st.sampled_from([0.0, 0.25, 1.0]))
def test_distances_use_common_entries_of_the_latest_updates(
    drawn: list[tuple[Index, DenseUpdate, Scalars]], lr: float
) -> None:
    policy = DivFL(2)
    policy.setup(Facts(SIZES))
    latest: dict[int, Scalars] = {}
    for number, (index, update, scalars) in enumerate(drawn):
        client = number % 4  # a later update of a client replaces its earlier one
        policy.observe(update, index, Report(client, "a", 10, 0.0, 0.0, lr=lr))
        latest[client] = {where: value / (lr or 1.0) for where, value in scalars.items()}
        if number % 2:
            policy.end_round(0)
    policy.end_round(0)
    for i, k in itertools.product(latest, latest):
        expected = 0.0 if i == k else entrywise(latest[i], latest[k])
        assert policy.distances_NN[i, k].item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(policy.distances_NN, policy.distances_NN.T)


def test_the_distance_of_full_models_is_proportional_to_the_euclidean_distance() -> None:
    one, other = torch.randn(2, 3, 4, dtype=torch.float64)
    assert distance({"w": one}, {"w": other}) == pytest.approx(float((one - other).norm()) / math.sqrt(12))


def observed(policy: DivFL, values: dict[int, float]) -> DivFL:
    """Let clients send an update of one entry each."""
    for client, value in values.items():
        update = DenseUpdate(torch.tensor([value], dtype=torch.float64))
        policy.observe(update, {"w": (slice(0, 1),)}, Report(client, "a", 10, 0.0, 0.0))
    policy.end_round(0)
    return policy


def test_clients_without_an_update_are_selected_first_and_share_the_unknown_clients() -> None:
    policy = DivFL(3)
    policy.setup(Facts(SIZES))
    probe = Table([], clients=range(8))
    seen: set[int] = set()
    for round in range(2):
        cohort = policy.select(round, probe)
        assert not seen & set(cohort)
        assert [policy.weight(client) for client in cohort] == pytest.approx([8 / 3] * 3)
        seen |= set(cohort)
        observed(policy, dict.fromkeys(cohort, float(round)))
    cohort = policy.select(2, probe)  # two clients without an update are left, and one more place
    assert set(cohort[:2]) == set(range(8)) - seen
    # The known client represents all six known clients, each new client only itself.
    assert [policy.weight(client) for client in cohort] == [1.0, 1.0, 6.0]


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(0, 30), min_size=8, max_size=8),
    unknown=st.sets(st.integers(0, 7), max_size=5),
    reach=st.sets(st.integers(0, 7), min_size=1),
    m=st.integers(1, 5),
)
def test_every_client_counts_for_the_nearest_selected_client(
    values: list[int], unknown: set[int], reach: set[int], m: int
) -> None:
    policy = DivFL(m)
    policy.setup(Facts(SIZES))
    observed(policy, {client: values[client] for client in range(8) if client not in unknown})
    cohort = policy.select(0, Table([], clients=sorted(reach)))
    first = [client for client in cohort if client in unknown]
    assert cohort[: len(first)] == first
    assert len(first) == min(m, len(unknown & reach))
    able, known = sorted(reach - unknown), [k for k in range(8) if k not in unknown]
    rows = [[abs(values[i] - values[k]) for k in known] for i in able]
    chosen = [able[row] for row in plain_greedy(rows, m - len(first))] if known else []
    assert cohort == first + chosen
    expected = dict.fromkeys(cohort, 1.0)
    for client in set(range(8)) - set(cohort):
        if client in unknown or not chosen:
            for each in cohort:
                expected[each] += 1 / len(cohort)
        else:
            expected[min(chosen, key=lambda i: (abs(values[i] - values[client]), chosen.index(i)))] += 1
    assert {client: policy.weight(client) for client in cohort} == pytest.approx(expected)
    assert sum(policy.weight(client) for client in cohort) == pytest.approx(8)


def test_selection_mean_uses_the_weights_and_weights_of_1_give_the_plain_mean() -> None:
    for weights in ((5.0, 3.0), (1.0, 1.0)):
        weighted, plain = SelectionMean(), HolderMean()
        for aggregator in (weighted, plain):
            aggregator.reset({"w": torch.zeros(3)})
            for width, value, weight in ((3, 2.0, weights[0]), (2, -1.0, weights[1])):
                report = Report(0, "a", 77, 0.0, 0.0, weight=weight)
                aggregator.update(DenseUpdate(torch.full((width,), value)), {"w": (slice(0, width),)}, report)
        mean = (2 * weights[0] - weights[1]) / sum(weights)
        assert weighted.compute()[0]["w"].tolist() == [mean, mean, 2.0]
        assert weights != (1.0, 1.0) or torch.equal(weighted.compute()[0]["w"], plain.compute()[0]["w"])


def test_updates_can_be_stored_in_files_and_a_checkpoint_records_the_kind_of_store(tmp_path: Path) -> None:
    policy, in_memory = DivFL(3, updates=DiskStore()), DivFL(3)
    policy.bind(str(tmp_path / "updates"))
    for each in (policy, in_memory):
        each.setup(Facts(SIZES))
        for round in range(4):
            observed(each, {client: 1.5 * client - round for client in each.select(round, Table([], clients=range(8)))})
    assert len(list((tmp_path / "updates").iterdir())) >= 8
    resumed = DivFL(3, updates=DiskStore(str(tmp_path / "updates")))
    resumed.setup(Facts(SIZES))
    resumed.load_state_dict(policy.state_dict())
    probe = Table([], clients=range(8))
    assert resumed.select(4, probe) == policy.select(4, probe) == in_memory.select(4, probe)
    assert (policy.describe() == resumed.describe()) > (policy.describe() == in_memory.describe())


def test_only_distances_of_new_updates_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = DivFL(2)
    policy.setup(Facts(SIZES))
    observed(policy, dict.fromkeys(range(8), 1.0))
    pairs: list[float] = []

    def spy(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        pairs.append(distance(one, other))
        return pairs[-1]

    monkeypatch.setattr(divfl, "distance", spy)
    observed(policy, {2: 3.0, 5: 1.0})
    assert len(pairs) == 2 * 7
    policy.end_round(0)
    assert len(pairs) == 2 * 7


def test_updates_are_kept_for_the_same_fleet_and_dropped_for_another() -> None:
    policy = DivFL(2)
    policy.setup(Facts(SIZES))
    observed(policy, {0: 1.0, 1: 2.0})
    policy.setup(Facts(SIZES))
    assert policy.updates.clients() == [0, 1]
    assert policy.distances_NN[0, 1].item() == 1.0
    policy.setup(Facts([10] * 5))
    assert policy.updates.clients() == []
    assert policy.distances_NN.tolist() == torch.zeros(5, 5).tolist()
