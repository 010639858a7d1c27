"""One contract for all selection policies, and each policy against a slow loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hetfl import ConfigurationError
from hetfl.layout import Index
from hetfl.piece import Facts
from hetfl.selection import (
    DeadlineAware,
    DivFL,
    Everyone,
    Exclusive,
    LossTimesSize,
    PowerOfChoice,
    Selection,
    SizeWeighted,
    Uniform,
)
from hetfl.testing import check_selection
from hetfl.types import Report
from hetfl.updates import DenseUpdate

SIZES = (30, 5, 80, 12, 7, 50, 21, 9, 64, 33)
NAN, INF = math.nan, math.inf

ALL: dict[str, Callable[[], Selection]] = {
    "uniform": lambda: Uniform(3),
    "size_weighted": lambda: SizeWeighted(3),
    "pow": lambda: PowerOfChoice(6, 3),
    "cpow": lambda: PowerOfChoice(6, 3, variant="cpow", batch=4),
    "rpow": lambda: PowerOfChoice(6, 3, variant="rpow"),
    "divfl": lambda: DivFL(3),
    "divfl_stochastic": lambda: DivFL(3, sample=4),
    "loss_times_size": lambda: LossTimesSize(3),
    "loss_times_size_drawn": lambda: LossTimesSize(3, beta=0.5, candidates=5),
    "deadline": lambda: DeadlineAware(5.0, 3),
    "exclusive": lambda: Exclusive(3),
}


class Table:
    """A probe that answers from tables, and records the clients asked."""

    def __init__(
        self, losses: Sequence[float], seconds: Sequence[float] = (1.0,) * 10, clients: Sequence[int] = range(10)
    ) -> None:
        self.clients, self.table, self.times, self.levels = clients, losses, seconds, "a" * 10
        self.asked: list[tuple[int, int | None]] = []

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        self.asked += [(client, samples) for client in clients]
        return [self.table[client] for client in clients]

    def seconds(self, clients: Sequence[int]) -> list[float]:
        return [self.times[client] for client in clients]

    def level(self, client: int) -> str:
        return self.levels[client]


def ready(policy: Selection, sizes: Sequence[int] = SIZES, seed: int = 0) -> Selection:
    policy.setup(Facts(sizes, seed, ("a", "b")))
    return policy


def probe_of(round: int, seed: int, reach: Sequence[int] = range(10)) -> Table:
    random = torch.Generator().manual_seed(1000 * seed + round)
    losses, seconds = torch.rand(2, 10, generator=random, dtype=torch.float64).tolist()
    return Table(losses, [10 * each for each in seconds], reach)


def play(policy: Selection, round: int, seed: int = 0, reach: Sequence[int] = range(10)) -> list[int]:
    """Run a round: every client of the cohort except the last sends an accepted update."""
    cohort = policy.select(round, probe_of(round, seed, reach))
    for client in cohort[:-1]:
        size = 2 + (client + round) % 3
        random = torch.Generator().manual_seed(round * 100 + client)
        index: Index = {"w": (slice(0, size),)}
        report = Report(client, "a", SIZES[client], float(torch.rand((), generator=random)), 0.0, lr=0.1)
        policy.observe(DenseUpdate(torch.randn(size, generator=random)), index, report)
    policy.end_round(0)
    return cohort


@pytest.mark.filterwarnings("ignore:No client within reach")
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25)
@given(reaches=st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_cohort_is_a_repeatable_set_of_reachable_clients(name: str, reaches: list[set[int]], seed: int) -> None:
    policy, again = ready(ALL[name](), seed=seed), ready(ALL[name](), seed=seed)
    for round, reach in enumerate(reaches):
        cohort = play(policy, round, seed, sorted(reach))
        assert len(set(cohort)) == len(cohort)
        assert set(cohort) <= reach
        assert 1 <= len(cohort) <= min(3, len(reach))
        if name != "deadline":
            assert len(cohort) == min(3, len(reach))
        assert all(policy.weight(client) > 0 for client in cohort)
        assert play(again, round, seed, sorted(reach)) == cohort


@pytest.mark.filterwarnings("ignore:No client within reach")
@pytest.mark.filterwarnings("ignore:Expected a client that")
@pytest.mark.parametrize("name", ALL)
def test_every_selection_fulfils_the_contract(name: str) -> None:
    check_selection(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_only_replayable_policies_work_without_a_probe(name: str) -> None:
    policy = ready(ALL[name]())
    if policy.replayable:
        assert policy.select(4, Everyone(10)) == policy.select(4, Table([0.0] * 10))
    elif name not in ("rpow", "divfl", "divfl_stochastic"):  # these learn from updates, and ask no client
        with pytest.raises(RuntimeError, match="got a replay"):
            policy.select(4, Everyone(10))


def test_exclusive_selects_clients_of_the_largest_level_alone() -> None:
    policy, probe = ready(Exclusive(3)), probe_of(0, 0)
    probe.levels = "bababbbbba"
    chosen = [policy.select(round, probe) for round in range(30)]
    assert all(sorted(each) == [1, 3, 9] for each in chosen)
    assert len({tuple(each) for each in chosen}) == 6
    probe.levels = "b" * 10
    assert policy.select(0, probe) == []


def test_draws_by_size_have_the_probabilities_of_sequential_draws() -> None:
    sizes, rounds = (1, 2, 3, 4), 6000
    policy, probe = ready(SizeWeighted(2), sizes), Table([], clients=range(4))
    counts = torch.zeros(4, 4)
    for round in range(rounds):
        first, second = policy.select(round, probe)
        counts[first, second] += 1
    for i in range(4):
        for k in range(4):
            expected = 0.0 if i == k else sizes[i] / 10 * sizes[k] / (10 - sizes[i])
            assert counts[i, k].item() / rounds == pytest.approx(expected, abs=0.02)  # four standard deviations


def ranked(scores: dict[int, float], count: int) -> list[int]:
    """Select the best one repeatedly: NaN first, then the largest score, the lowest id of equals."""
    left, ranking = dict(scores), list[int]()
    while left and len(ranking) < count:
        best = -1
        for client in sorted(left):
            value = INF if left[client] != left[client] else left[client]
            if best < 0 or value > (INF if left[best] != left[best] else left[best]):
                best = client
        ranking.append(best)
        del left[best]
    return ranking


LOSSES = st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, NAN, INF]), min_size=10, max_size=10)


@given(losses=LOSSES, d=st.integers(3, 10), variant=st.sampled_from(["pow", "cpow"]), round=st.integers(0, 50))
def test_power_of_choice_takes_the_largest_losses_among_candidates_drawn_by_size(
    losses: list[float], d: int, variant: Any, round: int
) -> None:
    probe = Table(losses)
    drawn = ready(SizeWeighted(d)).select(round, probe)
    cohort = ready(PowerOfChoice(d, 3, variant, batch=8)).select(round, probe)
    if d == 3:  # plain sampling: no client is asked
        assert (cohort, probe.asked) == (drawn, [])
        return
    assert cohort == ranked({client: losses[client] for client in drawn}, 3)
    assert sorted(probe.asked) == [(client, None if variant == "pow" else 8) for client in sorted(drawn)]
    if d == 10:  # greedy
        assert cohort == ranked(dict(enumerate(losses)), 3)


def test_rpow_uses_the_losses_of_the_last_accepted_round_without_probes() -> None:
    policy, probe = ready(PowerOfChoice(10, 3, "rpow")), Table([])
    assert policy.select(0, probe) == [0, 1, 2]  # no client has a known loss
    for client, loss in ((0, 3.0), (1, 0.5), (2, 1.0), (1, 4.0)):
        policy.observe(DenseUpdate(torch.zeros(1)), {"w": (slice(0, 1),)}, Report(client, "a", 1, loss, 0.0))
    assert policy.select(1, probe) == [3, 4, 5]
    for client in range(3, 10):
        policy.observe(DenseUpdate(torch.zeros(1)), {"w": (slice(0, 1),)}, Report(client, "a", 1, 0.1, 0.0))
    assert policy.select(2, probe) == [1, 0, 2]
    assert probe.asked == []


def test_losses_are_kept_only_for_the_same_fleet() -> None:
    policy = PowerOfChoice(9, 3, "rpow")
    ready(policy)
    policy.observe(DenseUpdate(torch.zeros(1)), {"w": (slice(0, 1),)}, Report(0, "a", 1, 3.0, 0.0))
    ready(policy)
    assert policy.remembered == {0: 3.0}
    ready(policy, SIZES[:-1])
    assert policy.remembered == {}


@given(losses=LOSSES, beta=st.sampled_from([0.0, 0.5, 1.0, 2.0]), d=st.sampled_from([None, 3, 6, 10]))
def test_loss_times_size_selects_the_highest_scores(losses: list[float], beta: float, d: int | None) -> None:
    probe = Table(losses)
    cohort = ready(LossTimesSize(3, beta, d)).select(5, probe)
    probed = [client for client, _ in probe.asked]
    if d == 3:
        assert (probed, cohort) == ([], ready(Uniform(3)).select(5, probe))
        return
    assert sorted(probed) == (list(range(10)) if d is None else sorted(ready(Uniform(d)).select(5, Table([]))))
    assert cohort == ranked({client: losses[client] * SIZES[client] ** beta for client in probed}, 3)


@pytest.mark.filterwarnings("ignore:No client within reach")
@given(
    seconds=st.lists(st.sampled_from([1.0, 4.0, 5.0, 5.1, 30.0, INF]), min_size=10, max_size=10),
    m=st.integers(1, 10),
    tenths=st.integers(0, 20),
)
def test_deadline_selects_clients_in_time_or_the_fastest_if_there_are_none(
    seconds: list[float], m: int, tenths: int
) -> None:
    cohort = ready(DeadlineAware(5.0, m, tenths / 10)).select(2, Table([], seconds))
    able = {client for client in range(10) if seconds[client] <= 5.0}
    if able:
        assert set(cohort) <= able
        assert len(cohort) == min(len(able), m - (-m * tenths // 10))  # the ceiling, with exact integers
    else:
        assert cohort == sorted(range(10), key=lambda client: seconds[client])[:m]


def test_over_selection_has_no_binary_rounding_error() -> None:
    assert 100 * 1.1 > 110
    assert [DeadlineAware(1.0, 100, share).cohort_size for share in (0.0, 0.001, 1.1)] == [100, 101, 210]


def test_a_deadline_that_no_client_meets_gives_a_warning_and_a_loose_deadline_is_uniform() -> None:
    with pytest.warns(UserWarning, match=r"deadline of 0.5 s: the fastest 3 take part, of which the first needs 1 s"):
        assert ready(DeadlineAware(0.5, 3)).select(0, Table([])) == [0, 1, 2]
    assert ready(DeadlineAware(INF, 3)).select(7, Table([])) == ready(Uniform(3)).select(7, Table([]))


def test_drawing_and_weighting_by_size_is_refused() -> None:
    for make in ALL.values():
        make().check_weighting(by_size=False)
        if not make().by_size:
            make().check_weighting(by_size=True)
    for policy in (SizeWeighted(3), PowerOfChoice(6, 3)):
        with pytest.raises(ConfigurationError, match=f"{type(policy).__name__} draws .* hetfl.aggregators.HolderMean"):
            policy.check_weighting(by_size=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SizeWeighted(0), "clients_per_round of at least 1 but got 0"),
        (lambda: Uniform(2.5), "clients_per_round to be a whole number but got 2.5"),  # type: ignore[arg-type]
        (lambda: Uniform("3"), "clients_per_round to be a whole number but got '3'"),  # type: ignore[arg-type]
        (lambda: PowerOfChoice(3.5, 3), "candidates to be a whole number but got 3.5"),  # type: ignore[arg-type]
        (lambda: LossTimesSize(3, None), "beta to be a number but got None"),  # type: ignore[arg-type]
        (lambda: DeadlineAware("x"), "deadline to be a number but got 'x'"),  # type: ignore[arg-type]
        (lambda: PowerOfChoice(2, 3), "candidates of at least clients_per_round, 3, but got 2"),
        (lambda: ready(PowerOfChoice(11, 3)), "candidates of at most the number of clients, 10, but got 11"),
        (lambda: PowerOfChoice(6, 3, "best"), r"variant among \('pow', 'cpow', 'rpow'\) but got 'best'"),  # type: ignore[arg-type]
        (lambda: PowerOfChoice(6, 3, "cpow", 0), "batch of at least 1 sample but got 0"),
        (lambda: LossTimesSize(3, -1.0), "finite beta of at least 0 but got -1.0"),
        (lambda: LossTimesSize(3, NAN), "finite beta of at least 0 but got nan"),
        (lambda: LossTimesSize(3, 1.0, 2), "candidates of at least clients_per_round, 3, or null but got 2"),
        (lambda: ready(LossTimesSize(3, 1.0, 11)), "candidates of at most the number of clients, 10, but got 11"),
        (lambda: DeadlineAware(0.0, 3), "deadline above 0 seconds but got 0.0"),
        (lambda: DeadlineAware(NAN, 3), "deadline above 0 seconds but got nan"),
        (lambda: DeadlineAware(1.0, 3, -0.1), "over_selection of at least 0 but got -0.1"),
        (lambda: DivFL(3, sample=0), "sample of at least 1 client or null but got 0"),
        (lambda: ready(DivFL(11)), "at most the number of clients, 10, but got 11"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(make: Callable[[], Selection], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
