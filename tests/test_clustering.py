"""Clustering policies without a run: choices, splits and state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hetfl.clustering import IFCA, ClusteredFL, Clustering, NewModel, OneCluster
from hetfl.clustering.bipartition import Linkage, _tensors, bipartition, norms, similarities
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import DenseUpdate


class GivenLosses:
    """A probe that answers with given losses by client, and records the clients asked."""

    def __init__(self, losses: dict[int, list[float]]) -> None:
        self.losses, self.asked = losses, list[int]()

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        self.asked += clients
        return [self.losses[client] for client in clients]


def ready(policy: Clustering, clients: int) -> Any:
    policy.setup(Facts([1] * clients, rounds=1))
    return policy


def index_of(size: int) -> Index:
    return {"w": (slice(0, size),)}


def send_update(policy: Clustering, client: int, values: Sequence[float], cluster: int = 0) -> None:
    report = Report(client, "a", 10, 1.0, 0.0, 0.1, model=cluster)
    policy.observe(DenseUpdate(torch.tensor(values)), index_of(len(values)), report)


def test_clients_choose_the_least_loss_the_first_of_ties_and_never_nan() -> None:
    policy = ready(IFCA(3), 4)
    probe = GivenLosses({0: [2.0, 1.0, 3.0], 1: [1.0, 1.0, 1.0], 3: [math.nan, math.inf, 5.0]})
    policy.assign(0, [0, 1, 3], probe)
    assert policy.assigned == [1, 0, -1, 2]
    assert policy.history == [(0, 0, 1), (0, 1, 0), (0, 3, 2)]
    assert [policy.cluster_of(client) for client in range(4)] == [1, 0, 0, 2]
    policy.assign(1, [0], GivenLosses({0: [2.0, 1.0, 3.0]}))
    assert len(policy.history) == 3  # nothing has changed


def test_a_client_that_does_not_answer_keeps_its_cluster_and_is_asked_again() -> None:
    policy, silent = ready(IFCA(2), 3), [math.nan, math.nan]
    policy.assign(0, [0, 1], GivenLosses({0: [2.0, 1.0], 1: silent}))
    assert policy.assigned == [1, -1, -1]
    policy.assign(1, [0, 1], GivenLosses({0: silent, 1: silent}))
    assert policy.assigned == [1, -1, -1]
    assert policy.new_models(1, policy.clusters) == []
    assert (policy.alone, policy.choices) == (0, 0)
    later = GivenLosses({1: [0.5, 1.0], 2: [math.nan, 3.0]})
    policy.settle(1, [0, 1, 2], later)
    assert later.asked == [1, 2]
    assert policy.assigned == [1, 0, 1]


def test_new_clients_choose_before_an_evaluation_and_all_clients_only_with_ask_all() -> None:
    losses = {client: [float(client % 2), 0.5] for client in range(4)}
    for ask_all, expected in ((False, [2, 3]), (True, [0, 1, 2, 3])):
        policy, probe = ready(IFCA(2, ask_all=ask_all), 4), GivenLosses(losses)
        policy.assign(0, [0, 1], GivenLosses(losses))
        policy.settle(0, range(4), probe)
        assert probe.asked == expected
        assert policy.assigned == [0, 1, 0, 1]


@given(st.permutations(range(3)), st.integers(0, 10**6))
def test_choices_do_not_depend_on_the_order_of_models(order: list[int], seed: int) -> None:
    losses = np.random.default_rng(seed).random((6, 3))
    plain, other = ready(IFCA(3), 6), ready(IFCA(3), 6)
    plain.assign(0, range(6), GivenLosses(dict(enumerate(losses.tolist()))))
    other.assign(0, range(6), GivenLosses(dict(enumerate(losses[:, order].tolist()))))
    assert [order[cluster] for cluster in other.assigned] == plain.assigned


def collapse(policy: IFCA, rounds: int) -> list[list[NewModel]]:
    same = GivenLosses({client: [2.0, 1.0, 3.0] for client in range(6)})
    replaced = []
    for round in range(rounds):
        policy.assign(round, range(6), same)
        replaced.append(policy.new_models(round, policy.clusters))
    return replaced


def test_a_collapse_is_warned_about_once() -> None:
    with pytest.warns(UserWarning, match="all clients have chosen cluster 1 of 3 for 3 rounds up to round 2") as caught:
        assert collapse(ready(IFCA(3), 6), 8) == [[]] * 8
    assert len(caught) == 1


@pytest.mark.parametrize(("jitter", "source"), [(0.2, 1), (None, None)])
@pytest.mark.filterwarnings("ignore:IFCA")
def test_restarts_replace_models_that_no_client_chose(jitter: float | None, source: int | None) -> None:
    replaced = collapse(ready(IFCA(3, restarts=2, jitter=jitter), 6), 10)
    models = [NewModel(cluster, source, jitter or 0.0) for cluster in ((0, 2) if jitter is None else (0, 2, 1))]
    assert [bool(each) for each in replaced] == [False, False, True, False, False, True, False, False, False, False]
    assert replaced[2] == replaced[5] == models


def test_two_clients_with_one_choice_are_not_a_collapse() -> None:
    policy = ready(IFCA(2), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for round in range(3):
            policy.assign(round, [0, 1], GivenLosses({0: [1.0, 2.0], 1: [1.0, 2.0]}))
            policy.new_models(round, policy.clusters)


def test_one_tensor_of_all_updates_is_held_at_a_time() -> None:
    read: list[str] = []

    class Noted(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            read.append(name)
            return super().__getitem__(name)

    tensors = iter(_tensors([Noted({"a": torch.ones(2), "b": torch.ones(3)})]))
    assert next(tensors)[0].shape == (1, 2)
    assert set(read) == {"a"}
    assert next(tensors)[0].shape == (1, 3)


def slow_similarity(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    a: list[float] = []
    b: list[float] = []
    for name in one.keys() & other.keys():
        for i in range(min(len(one[name]), len(other[name]))):
            if not (one[name][i].isnan() or other[name][i].isnan()):
                a.append(one[name][i].item())
                b.append(other[name][i].item())
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


@given(st.integers(0, 10**6))
def test_similarities_and_norms_use_covered_entries_only(seed: int) -> None:
    random = np.random.default_rng(seed)
    updates = []
    for _ in range(4):
        blocks = {
            name: torch.tensor(random.normal(size=random.integers(1, 5))) for name in "ab" if random.random() < 0.8
        }
        for block in blocks.values():
            block[torch.tensor(random.random(len(block)) < 0.3)] = math.nan
        updates.append(blocks or {"a": torch.tensor([1.0], dtype=torch.float64)})
    actual = similarities(updates)
    for i in range(4):
        for k in range(4):
            expected = 1.0 if i == k else slow_similarity(updates[i], updates[k])
            assert actual[i, k] == pytest.approx(expected, abs=1e-9)
    entries: dict[tuple[str, int], list[float]] = {}
    for blocks in updates:
        for name, block in blocks.items():
            for position, value in enumerate(block.tolist()):
                entries.setdefault((name, position), []).extend([] if math.isnan(value) else [value])
    mean = math.sqrt(sum((sum(values) / len(values)) ** 2 for values in entries.values() if values))
    longest = max(math.sqrt(sum(float(b.nan_to_num().square().sum()) for b in blocks.values())) for blocks in updates)
    assert norms(updates) == pytest.approx((mean, longest), abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6), st.sampled_from(get_args(Linkage)))
def test_two_orthogonal_groups_are_recovered_exactly(seed: int, first: int, second: int, linkage: Linkage) -> None:
    random = np.random.default_rng(seed)
    groups = random.permutation([0] * first + [1] * second).tolist()
    updates = []
    for group in groups:
        values = np.zeros(8)
        values[4 * group : 4 * group + 4] = random.uniform(0.5, 1.0, 4)  # acute angles within a group
        updates.append({"w": torch.tensor(values)})
    stay, leave = bipartition(similarities(updates), linkage)
    assert {groups[row] for row in stay} == {groups[0]}
    assert {groups[row] for row in leave} == {1 - groups[0]}


def random_cosines(clients: int, seed: int) -> np.ndarray:
    """Return the similarities of random directions, some of them near each other."""
    random = np.random.default_rng(seed)
    directions = random.normal(size=(clients, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cosines: np.ndarray = directions @ directions.T
    np.fill_diagonal(cosines, 1.0)
    return cosines


def crossing(cosines: np.ndarray, first: Sequence[int]) -> float:
    """Return the largest similarity between a group and the other clients, entry by entry."""
    rest = set(range(len(cosines))) - set(first)
    return max(float(cosines[i, k]) for i in first for k in rest)


def smallest_crossing(cosines: np.ndarray) -> float:
    """Return the smallest crossing similarity of all 2^(S-1) - 1 bipartitions."""
    others = range(1, len(cosines))
    groups = ((0, *chosen) for size in range(len(others)) for chosen in combinations(others, size))
    return min(crossing(cosines, group) for group in groups)


def test_single_linkage_attains_the_papers_criterion_always_and_complete_linkage_sometimes() -> None:
    attained = {"single": 0, "complete": 0}
    for seed in range(100):
        cosines = random_cosines(3 + seed % 6, seed)
        smallest = smallest_crossing(cosines)
        for linkage in get_args(Linkage):
            stay, leave = bipartition(cosines, linkage)
            assert sorted(stay + leave) == list(range(len(cosines)))
            assert stay[0] == 0
            attained[linkage] += crossing(cosines, stay) == smallest
    assert attained["single"] == 100
    assert 0 < attained["complete"] < 100


@pytest.mark.parametrize(("linkage", "parts"), [("single", [[0, 1, 2], [3]]), ("complete", [[0, 1], [2, 3]])])
def test_a_cluster_is_split_by_the_configured_linkage(linkage: Linkage, parts: list[list[int]]) -> None:
    policy = ready(ClusteredFL(10.0, 0.1, min_rounds=0, linkage=linkage), 4)
    policy.assign(0, range(4), GivenLosses({}))
    for client, degrees in enumerate((0, 40, 85, 140)):  # the gaps are 40, 45 and 55: the largest one is the last
        send_update(policy, client, [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    policy.new_models(0, 1)
    assert [policy.tree[0]["stay"], policy.tree[0]["leave"]] == parts
    widest = {"single": 55, "complete": 45}[linkage]
    assert policy.tree[0]["similarity"] == pytest.approx(math.cos(math.radians(widest)))


def send_opposite_updates(
    policy: ClusteredFL, clients: int, round: int, scale: float = 1.0, drift: float = 0.0
) -> list[NewModel]:
    """Send updates: even clients in one direction, odd clients in the opposite one, all drifting along a third axis."""
    policy.assign(round, range(clients), GivenLosses({}))
    for client in range(clients):
        send_update(policy, client, [scale if client % 2 else -scale, drift], policy.cluster_of(client))
    return policy.new_models(round, max(policy.assigned) + 1)


def test_a_stationary_cluster_is_split_by_direction() -> None:
    policy = ready(ClusteredFL(0.4, 0.9, min_rounds=2), 6)
    assert [send_opposite_updates(policy, 6, round) for round in range(3)] == [[], [], [NewModel(1, 0)]]
    assert policy.assigned == [0, 1, 0, 1, 0, 1]
    assert policy.tree[0].pop("similarity") == pytest.approx(-1.0)
    assert policy.tree == [{"round": 2, "parent": 0, "child": 1, "stay": [0, 2, 4], "leave": [1, 3, 5]}]
    assert send_opposite_updates(policy, 6, 3) == []  # the members of each part agree, so their mean is long


def test_there_is_no_split_with_a_large_mean_small_updates_or_few_members() -> None:
    assert send_opposite_updates(ready(ClusteredFL(0.4, 0.9, min_rounds=0), 6), 6, 5, drift=0.5) == []
    assert send_opposite_updates(ready(ClusteredFL(0.4, 1.1, min_rounds=0), 6), 6, 5) == []
    assert send_opposite_updates(ready(ClusteredFL(0.4, 0.9, min_rounds=6), 6), 6, 5) == []
    assert send_opposite_updates(ready(ClusteredFL(0.4, 0.9, min_rounds=0), 2), 2, 5) == []
    assert send_opposite_updates(ready(ClusteredFL(0.4, 0.9, min_rounds=0, min_size=5), 4), 4, 5) == []


def test_absent_members_count_by_their_last_update_and_unheard_members_prevent_a_split() -> None:
    policy = ready(ClusteredFL(0.4, 0.9, min_rounds=0), 4)
    policy.assign(0, [0, 1, 2], GivenLosses({}))
    for client in (0, 1, 2):
        send_update(policy, client, [1.0 if client % 2 else -1.0, 0.0])
    assert policy.new_models(0, 1) == []
    policy.assign(1, [3], GivenLosses({}))
    send_update(policy, 3, [1.0, 0.0])
    assert policy.new_models(1, 1) == [NewModel(1, 0)]
    assert policy.assigned == [0, 1, 0, 1]


@pytest.mark.parametrize("make", [OneCluster, lambda: IFCA(2), lambda: ClusteredFL(0.4, 0.9, min_rounds=0)])
def test_the_state_of_a_policy_is_restored(make: Any) -> None:
    policy, again = ready(make(), 4), ready(make(), 4)
    policy.assign(0, range(4), GivenLosses({client: [client % 2, 0.5] for client in range(4)}))
    for client in range(4):
        send_update(policy, client, [1.0 if client % 2 else -1.0, 0.0])
    policy.new_models(0, policy.initial_models)
    state = policy.state_dict()
    again.load_state_dict(state)
    assert str(again.state_dict()) == str(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IFCA(1), "clusters of at least 2 for IFCA but got 1"),
        (lambda: IFCA(2, restarts=-1), "restarts of at least 0"),
        (lambda: IFCA(2, jitter=0.0), "jitter above 0 or null"),
        (lambda: ClusteredFL(eps1=0.0), "eps1 above 0"),
        (lambda: ClusteredFL(eps2=math.inf), "eps2 above 0"),
        (lambda: ClusteredFL(min_rounds=-1), "min_rounds of at least 0"),
        (lambda: ClusteredFL(min_size=2), "min_size of at least 3 clients"),
        (lambda: ClusteredFL(linkage="average"), "linkage single or complete for ClusteredFL but got average"),  # type: ignore[arg-type]
    ],
)
def test_wrong_settings_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
