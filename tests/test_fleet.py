"""Fleets against plain loops over clients, and properties that hold for all devices."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from fleet import bookkeeping
from hypothesis import given
from hypothesis import strategies as st

from hetfl.accounting import Forecast
from hetfl.errors import ConfigurationError
from hetfl.fleet import (
    Between,
    ByDevice,
    Device,
    Devices,
    Draw,
    Dynamic,
    Fixed,
    Fleet,
    LogNormal,
    LogUniform,
    Preset,
    RandomFleet,
    SameDevice,
    Work,
)
from hetfl.fleet.numbers import FOREVER
from hetfl.piece import Facts
from hetfl.wire import dense_size


def ready(fleet: Fleet, clients: int = 20, seed: int = 0) -> Fleet:
    fleet.setup(Facts([1] * clients, seed))
    return fleet


class Stays(Fleet):
    """A fleet with given rounds of presence.

    Args:
        rounds: first and last round of each client.
    """

    def __init__(self, rounds: list[tuple[int, int]]) -> None:
        super().__init__()
        self.rounds = rounds

    def draw(self, num_clients: int, seed: int) -> Devices:
        plain = Devices.of_kinds({"device": Device()}, np.zeros(num_clients, np.int64))
        first, last = np.array(self.rounds).T
        return Devices(**{**vars(plain), "first_round": first, "last_round": last})


@given(st.floats(0.001, 1), st.floats(0.1, 1e7), st.integers(0, 100), st.floats(0, 1e6))
def test_clients_are_reachable_for_their_share_of_every_period(
    availability: float, period: float, seed: int, start: float
) -> None:
    fleet = ready(RandomFleet(availability=availability, period=period), 5, seed)
    times, seen = 400, np.zeros(5)
    for step in range(times):
        seen[fleet.reachable(0, (start + step / times) * period)] += 1
    assert np.abs(seen / times - availability).max() <= 1.01 / times


@given(st.floats(0.001, 0.3), st.floats(1.0, 1e6), st.integers(0, 1000), st.floats(0, 1e5))
def test_waiting_ends_when_the_first_client_is_reachable(
    availability: float, period: float, seed: int, turns: float
) -> None:
    fleet, now = ready(RandomFleet(availability=availability, period=period), 3, seed), turns * period
    then = fleet.next_reachable(0, now)
    assert len(fleet.reachable(0, then))
    if len(fleet.reachable(0, now)):
        assert then == now
        return
    assert now < then <= now + period * (1 + 1e-9)
    for part in np.linspace(0, 1 - 1e-6, 50):
        assert not len(fleet.reachable(0, now + part * (then - now)))


ROUNDS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12) | st.just(FOREVER)), min_size=1, max_size=6)


@given(ROUNDS, st.integers(1, 40) | st.sampled_from([None, -1]))
def test_a_round_without_any_client_is_refused_before_the_run(
    given_rounds: list[tuple[int, int]], rounds: int | None
) -> None:
    stays = [(first, last if last == FOREVER else first + last) for first, last in given_rounds]
    fleet = ready(Stays(stays), len(stays))
    end = rounds if rounds is not None and rounds > 0 else 50
    empty = [r for r in range(end) if not any(first <= r <= last for first, last in stays)]
    for r in range(30):
        present = [k for k, (first, last) in enumerate(stays) if first <= r <= last]
        assert fleet.reachable(r, 0.0).tolist() == present
        assert math.isinf(fleet.next_reachable(r, 0.0)) == (not present)
    if empty:
        with pytest.raises(ConfigurationError, match=f"any in round {empty[0]}:"):
            fleet.check_rounds(rounds)
    else:
        fleet.check_rounds(rounds)


VARIED = {"throughput": LogNormal(1e9, 3), "downlink": LogUniform(1e5, 1e7), "uplink": Between(1e4, 1e5)}


def test_seconds_are_the_sum_of_the_phases_and_vary_by_round_only() -> None:
    fleet = ready(RandomFleet(**VARIED, variation=0.5))  # type: ignore[arg-type]
    devices, everyone = fleet.devices, np.arange(20)
    down, flops, up = np.arange(20) * 1000, np.linspace(0, 2e9, 20), np.arange(20) * 77
    usual = fleet.seconds(everyone, None, Work(down, flops, up))
    for k in range(20):
        plain = down[k] / devices.downlink[k] + flops[k] / devices.throughput[k] + up[k] / devices.uplink[k]
        assert usual[k] == pytest.approx(plain, rel=1e-14)
        assert fleet.seconds(k, None, Work(int(down[k]), flops[k], int(up[k]))) == usual[k]
    computing = Work(0, 1e9)
    third = fleet.seconds(everyone, 3, computing)
    fleet.seconds(everyone, 4, computing)
    assert np.array_equal(third, fleet.seconds(everyone, 3, computing))
    assert np.array_equal(third[[5, 2]], fleet.seconds(np.array([5, 2]), 3, computing))
    assert np.array_equal(fleet.seconds(everyone, 3, Work(10, 0.0, 10)), fleet.seconds(everyone, 4, Work(10, 0.0, 10)))


def test_variation_is_the_standard_deviation_of_the_logarithm() -> None:
    fleet = ready(SameDevice(variation=0.4), 2000)
    factors = [np.log(fleet.seconds(np.arange(2000), r, Work(0, 1e10))) for r in range(5)]
    assert np.std(factors) == pytest.approx(0.4, rel=0.03)
    assert np.mean(factors) == pytest.approx(0.0, abs=0.02)
    assert abs(np.corrcoef(factors)[0, 1]) < 0.08


def test_uplink_and_downlink_vary_together_and_independently_of_speed() -> None:
    fleet = ready(SameDevice(variation=0.4, link_variation=0.7), 2000)
    everyone, device = np.arange(2000), Device()
    down, speed, up = fleet.rates(everyone, 6)
    assert np.allclose(down / device.downlink, up / device.uplink, rtol=1e-14)
    factors = np.log(np.stack([down / device.downlink, speed / device.throughput]))
    assert np.std(factors, axis=1) == pytest.approx([0.7, 0.4], rel=0.05)
    assert abs(np.corrcoef(factors)[0, 1]) < 0.08
    again = fleet.rates(everyone, 7)[0]
    assert abs(np.corrcoef(np.log(down), np.log(again))[0, 1]) < 0.08
    assert np.array_equal(fleet.rates(everyone, 6)[0], down)  # earlier queries must not matter
    seconds = fleet.seconds(everyone, 6, Work(1000, 1e9, 500))
    assert np.allclose(seconds, 1000 / down + 1e9 / speed + 500 / up, rtol=1e-14)
    usual = fleet.rates(everyone, None)
    assert all((rate == float(rate[0])).all() for rate in usual)
    only_speed = ready(SameDevice(variation=0.4), 2000)
    assert np.array_equal(only_speed.rates(everyone, 6)[1], speed)


@given(st.integers(0, 10**7), st.floats(0, 1e12), st.integers(0, 10**7), st.floats(0, 2), st.integers(0, 19))
def test_work_is_done_in_order_until_the_time_is_over(
    down: int, flops: float, up: int, part: float, client: int
) -> None:
    fleet = ready(RandomFleet(**VARIED, variation=0.5, link_variation=0.5))  # type: ignore[arg-type]
    work = Work(down, flops, up)
    needed = float(fleet.seconds(client, 1, work))
    done = fleet.done(client, 1, work, part * needed)
    if part > 1 + 1e-9:
        assert done == work
    assert done.up_bytes == 0 or done.flops == flops
    assert done.flops == 0 or done.down_bytes == down
    took = float(fleet.seconds(client, 1, done))
    byte = max(1 / fleet.rates(client, 1)[0], 1 / fleet.rates(client, 1)[2])  # fractions of bytes do not count
    assert min(part, 1) * needed - byte * 1.001 <= took * (1 + 1e-9) + 1e-9
    assert took <= min(part, 1) * needed * (1 + 1e-9) + 1e-9


def test_failures_have_the_given_rate_and_a_uniform_time() -> None:
    fleet = ready(RandomFleet(failure_rate=Between(0.1, 0.6)), 30, seed=3)
    failures = {(k, r): fleet.fails(k, r) for k in range(30) for r in range(200)}
    for k in range(30):
        rate = sum(failures[k, r] is not None for r in range(200)) / 200
        assert rate == pytest.approx(fleet.devices.failure_rate[k], abs=0.15)
    shares = [share for share in failures.values() if share is not None]
    assert np.quantile(shares, [0.0, 0.5, 1.0]) == pytest.approx([0.0, 0.5, 1.0], abs=0.05)
    again = ready(RandomFleet(failure_rate=Between(0.1, 0.6)), 30, seed=3)
    assert all(again.fails(k, r) == failures[k, r] for k, r in reversed(failures))
    assert ready(SameDevice()).fails(0, 0) is None


@pytest.mark.parametrize(
    "fleet",
    [
        lambda: RandomFleet(**VARIED, availability=0.5, variation=0.2),  # type: ignore[arg-type]
        lambda: Preset("mixed", variation=0.2, link_variation=0.2),
    ],
)
def test_a_fleet_is_a_function_of_its_settings_and_the_seed(fleet: type[Fleet]) -> None:
    one, same, other = ready(fleet(), seed=1), ready(fleet(), seed=1), ready(fleet(), seed=2)
    assert one.describe() == same.describe() != other.describe()
    assert "\n" not in one.describe()
    for now in (0.0, 3e4, 1e6):
        assert np.array_equal(one.reachable(2, now), same.reachable(2, now))


@pytest.mark.parametrize(
    ("draw", "quantiles"),
    [
        (Between(2.0, 4.0), (2.2, 3.0, 3.8)),
        (LogUniform(1.0, 100.0), (100**0.1, 10.0, 100**0.9)),
        (LogNormal(10.0, 3.0), (10 * 3**-1.281551565545, 10.0, 10 * 3**1.281551565545)),
    ],
)
def test_draws_have_the_documented_quantiles(draw: Draw, quantiles: tuple[float, ...]) -> None:
    assert draw.at(np.array([0.1, 0.5, 0.9])) == pytest.approx(quantiles, rel=1e-9)
    many = ready(RandomFleet(throughput=draw), 4000).devices.throughput
    assert np.quantile(many, [0.1, 0.5, 0.9]) == pytest.approx(quantiles, rel=0.12)


def test_clients_join_and_stay_for_whole_rounds() -> None:
    devices = ready(RandomFleet(first_round=Between(0, 4), stays=Between(0.5, 3)), 500).devices
    assert Counter(devices.first_round.tolist()).keys() == {0, 1, 2, 3}
    assert Counter((devices.last_round - devices.first_round + 1).tolist()).keys() == {1, 2, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Device(uplink=math.inf), "uplink of a device to be a finite number above 0 but got inf"),
        (lambda: Device(availability=0.0), "availability of a device"),
        (lambda: Device(failure_rate=1.5), "failure_rate of a device to be a probability"),
        (lambda: SameDevice(period=0), "period"),
        (lambda: SameDevice(variation=math.nan), "variation"),
        (lambda: Preset("phones", link_variation=-0.1), r"link_variation in \[0, 3\]"),
        (lambda: Preset("phone"), r"a preset among \['phones', 'edge_boxes', 'mixed'\] but got 'phone'"),  # type: ignore[arg-type]
        (lambda: Between(3, 2), "low 3 and high 2"),
        (lambda: LogUniform(0, 2), "low 0 and high 2"),
        (lambda: LogUniform(1, math.inf), "low 1 and high inf"),
        (lambda: LogUniform(2, 1), "low 2 and high 1"),
        (lambda: LogNormal(1, 0.5), "spread, .* at least 1 but got 0.5"),
        (lambda: LogNormal(1, math.inf), "spread, .* at least 1 but got inf"),
        (lambda: LogNormal(0), "a median above 0 but got 0"),
        (lambda: LogNormal(math.inf), "a median above 0 but got inf"),
        (lambda: ByDevice(0), "ByDevice but got 0"),
        (lambda: ready(RandomFleet(throughput=-1.0)), "throughput of client 0"),
        (lambda: ready(RandomFleet(first_round=2.0, stays=0.0)), "last_round of client 0 .* 2, but got 1"),
    ],
)
def test_impossible_devices_are_refused_in_one_line(make: type, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_by_device_assigns_the_most_expensive_level_that_meets_the_deadline() -> None:
    fleet = ready(RandomFleet(**VARIED), 40)  # type: ignore[arg-type]
    sizes, entries = [3 + k % 7 for k in range(40)], {"a": 40_000, "b": 9_000, "c": 2_500}
    flops = {"a": (1.0, 9e6), "b": (1.0, 2.5e6), "c": (1.0, 0.4e6)}
    forecast = Forecast(fleet, sizes, 2, entries, flops)
    assignment = ByDevice(2.5)
    assignment.setup(Facts([1] * 40, 0, list(entries)))
    assignment.meet(forecast.table())
    devices = fleet.devices
    for k in range(40):
        seconds = {
            level: dense_size(entries[level]) * (1 / devices.downlink[k] + 1 / devices.uplink[k])
            + 2 * sizes[k] * flops[level][1] / devices.throughput[k]
            for level in entries
        }
        able = [level for level in entries if seconds[level] <= 2.5]
        assert assignment.level(k, 5) == (able[0] if able else "c")
    assert set(assignment.levels(0)) == {"a", "b", "c"}
    assert forecast.training_flops(1, "b", None) == 2 * 4 * 2.5e6
    assert forecast.training_flops(1, "b", 3) == 3 * 4 * 2.5e6


def test_by_device_assigns_a_level_that_takes_exactly_the_deadline() -> None:
    assignment = ByDevice(2.5)
    assignment.setup(Facts([1] * 4, 0, ["a", "b", "c"]))
    assignment.meet(np.array([[2.5, 2.5 + 2**-50, 9.0, 2.0], [1.0, 2.5, 8.0, 2.5], [0.5, 1.0, 7.0, 1.0]]))
    assert assignment.levels(0) == ["a", "b", "c", "b"]


def test_the_level_of_one_client_equals_its_entry_in_the_list_of_all() -> None:
    for assignment in (Fixed({"c": 2, "a": 1}), Dynamic({"c": 2, "a": 1})):
        assignment.setup(Facts([1] * 30, 4, ["a", "b", "c"]))
        for r in (0, 3, 0):
            levels = assignment.levels(r)
            assert set(levels) == {"a", "c"}
            assert [assignment.level(k, r) for k in range(30)] == levels
            assert [assignment.names[p] for p in assignment.positions(r).tolist()] == levels


def test_the_fleet_benchmark_checks_and_times_its_bookkeeping() -> None:
    assert len(bookkeeping(500, blocks=1)) == 4
