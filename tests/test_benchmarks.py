"""The benchmarks run, and the compared sides compute equal results. Speed is not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from aggregation import aggregation, uploads
from attacks import ATTACKS, RULES, TINY
from attacks import accuracy as attacked
from bare import BareLoop
from checkpoint import checkpoints
from cnn import CNN
from codes import cost
from compression import upload
from cost_model import CLASSES, CURVES, PIXELS, Size, drawn, fitted, seconds_of
from executors import executors
from memory import slope
from robust import check as check_medians
from robust import timed
from roofline import PASSES_OF_A_STEP, limit
from round import Federation, check, local_rounds, whole_rounds
from scale import run as scale
from schedules import run as buffered_rounds
from startup import empty_rounds
from structured import choices, pruned_rounds
from text import TextSetting, speeds, text_rounds
from timing import Row, double_precision, interleaved, report, rows
from ways import by_matrices, passes
from wire_memory import KINDS, coded, resident, updated
from work import Setting, bare_loop, bare_work

from hetfl.layout import Layout
from hetfl.local import Sequential, Stacked
from hetfl.models import MLP
from hetfl.wire import Expected, decode, encode

SMALL = Setting("be", clients=8, cohort=4, samples=11, batch_size=5, epochs=2, hidden=(16, 32), size=8)


def test_local_rounds_are_checked_and_timed() -> None:
    makes = {name: make for name, make in executors(2, SMALL.cohort).items() if name != "Auto"}
    timings = local_rounds(SMALL, makes, num_threads=1, blocks=1)
    assert [row.side for row in timings] == [
        "Sequential",  # the baseline for clients with different parts
        "bare loop, 1 thread",
        "bare loop, 1 thread, foreach",
        *("Workers(2)", "Workers(2, Stacked)", "Workers(2, Stacked(1))", "default", "Stacked"),
    ]
    assert all(len(row.seconds) == 1 for row in timings)


def test_the_limit_of_memory_counts_every_pass_over_activations_and_parameters() -> None:
    arithmetic, seconds = limit(SMALL, "b", bandwidth=1.0, repeats=1)
    assert arithmetic > 0
    norms_and_relus = 2 * (3 + 2) * (8 * 8 * 8 + 16 * 4 * 4)  # a norm and a ReLU of both blocks: same sizes in and out
    pool = 3 * 8 * 8 * 8 + 2 * 8 * 4 * 4
    parameters = (8 * 9 + 8) + 2 * 8 + (8 * 16 * 9 + 16) + 2 * 16 + (16 * 10 + 10)
    assert seconds == 4 * (norms_and_relus + pool + parameters * PASSES_OF_A_STEP / SMALL.batch_size)


def test_other_ways_compute_the_same() -> None:
    setting = replace(SMALL, levels="b")
    gathered = passes(setting)  # compares both ways
    assert len(gathered) == 2
    with double_precision():
        net, x = setting.level_net("b"), torch.randn(3, 1, 8, 8)
        other = by_matrices(net)
        outputs, others = net(x), other(x)
        assert torch.allclose(outputs, others, rtol=0, atol=1e-12)
        pairs = zip(
            torch.autograd.grad(outputs.square().sum(), list(net.parameters())),
            torch.autograd.grad(others.square().sum(), list(other.parameters())),
            strict=True,
        )
        assert all(torch.allclose(one, two, rtol=0, atol=1e-9) for one, two in pairs)


def test_the_model_of_costs_finds_the_coefficients_of_costs_that_are_linear() -> None:
    size = Size(clients=12, cohort=4, hidden=20, levels=3)
    for width in size.widths():
        net = MLP(PIXELS, CLASSES, [20, 20], width=width)
        assert sum(p.numel() for p in net.parameters()) == size.parameters(width)
    sizes = list(dict.fromkeys(each for curve in CURVES.values() for each in curve))
    truth = np.array([3e-3, 5e-4, 2e-8, 0.0, 4e-9, 1e-10])
    assert fitted(sizes, [float(np.dot(each.terms(), truth)) for each in sizes]) == pytest.approx(truth, abs=1e-12)
    assert all(each.cohort <= each.clients and each.terms()[4] <= 4e7 for each in drawn(20))
    assert seconds_of(size, rounds=1) > 0


def test_rounds_of_a_language_model_are_checked_and_their_tokens_counted() -> None:
    setting = TextSetting("d", clients=4, cohort=2, samples=5, batch_size=2, vocabulary=12, length=4, channels=16)
    timings = text_rounds(setting, blocks=1)
    assert [row.side for row in timings] == ["bare loop, 1 thread", "bare loop, 1 thread, foreach", "Sequential"]
    assert setting.tokens == 2 * 5 * 4
    slow = Row("case", "slow", [0.5], [0.25])
    assert speeds(setting, [slow]) == ["slow: 80 tokens per second, 0.500 of slow"]


def test_the_memory_of_this_process_is_measured_in_bytes() -> None:
    before, size = resident("VmRSS"), 64 * 2**20
    block = np.ones(size, dtype=np.uint8)
    assert 0.9 * size < resident("VmRSS") - before < 1.5 * size
    assert resident("VmHWM") >= resident("VmRSS") > len(block)


@pytest.mark.parametrize(("kind", "sent"), [*zip(KINDS, (900, 450, 900, 900, 1800), strict=True)])
def test_the_message_whose_reading_is_measured_has_all_its_values(kind: str, sent: int) -> None:
    payload = encode(coded(updated(kind, 30), 5), round=0, client=0)
    update = decode(payload, Expected(0, 0, 900, layout=Layout({"w": (30, 30)})))
    assert (update.num_sent, update.size) == (sent, 900)
    assert len(payload) > sent * (4 + 4)  # a scale and a zero point for every value


def test_the_cost_of_codes_is_measured_for_both_directions() -> None:
    rows = cost(2000, 0.05, (3,), blocks=1)
    sides = ["float32", "3 bits", "3 bits, quantised", "float32", "3 bits"]
    assert [row.side for row in rows] == sides
    assert all(row.seconds[0] > 0 for row in rows)


def test_the_cnn_and_its_training_equal_those_of_the_comparison() -> None:
    assert sum(p.numel() for p in CNN().parameters()) == 1_626_442
    check(Setting("a", clients=2, cohort=2, samples=4, batch_size=2, size=32, channels=3, cnn=True), Stacked())


def test_a_different_step_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    train = BareLoop.train
    monkeypatch.setattr(BareLoop, "train", lambda self, k, level, seed, start: train(self, k, level, seed + 1, start))
    with pytest.raises(RuntimeError, match="equal deltas"):
        check(SMALL, Sequential())


def test_a_whole_round_moves_the_model_by_the_mean_of_the_bare_deltas() -> None:
    with double_precision():
        federation = Federation(SMALL, SMALL.data(), Sequential())
        before = {name: tensor.detach().clone() for name, tensor in federation.models.tensors[0].items()}
        deltas = bare_loop(SMALL, federation.data, before).round(bare_work(SMALL, 0))
        assert len(list(federation.whole_round(0))) == 3
        for i, (name, tensor) in enumerate(federation.models.tensors[0].items()):
            sums, counts = torch.zeros_like(tensor), torch.zeros_like(tensor)
            for task, delta in zip(SMALL.tasks(0), deltas, strict=True):
                held = torch.zeros_like(tensor)
                held[tuple(slice(size) for size in delta[i].shape)] = 1.0
                if name.startswith("classifier"):
                    held[~federation.data.labels(task.client)] = 0.0
                whole = torch.zeros_like(tensor)
                whole[tuple(slice(size) for size in delta[i].shape)] = delta[i]
                sums, counts = sums + held * whole, counts + held
            expected = before[name] + torch.where(counts > 0, sums / counts.clamp(min=1), 0.0)
            assert torch.allclose(tensor, expected, rtol=0, atol=1e-10)


def test_the_time_of_a_whole_round_is_the_sum_of_its_parts() -> None:
    *parts, whole = whole_rounds(SMALL, blocks=2)
    assert whole.seconds == pytest.approx([sum(times) for times in zip(*(p.seconds for p in parts), strict=True)])


@pytest.mark.parametrize("attack", ["a little is enough", "label flip", "scaling"])
def test_the_accuracy_under_an_attack_is_measured(attack: str) -> None:
    assert {"none", attack} < ATTACKS.keys()
    small = replace(TINY, rounds=1, hidden=(4, 4))
    assert all(0 <= attacked(small, rule, attack, 0.2, seed=0) <= 100 for rule in list(RULES)[-2:])


def test_robust_rules_are_checked_and_timed() -> None:
    small = uploads(clients=6, hidden=(8, 8, 16, 16))
    check_medians(small)
    sides = [row.side for row in timed(small, num_threads=1, blocks=1)]
    assert sides == ["HolderMean", "CoordinateMedian", "TrimmedMean"]


def test_aggregation_is_checked_and_timed() -> None:
    timings = aggregation(uploads(clients=6, hidden=(16, 16, 32, 32)), num_threads=1, blocks=1)
    assert [row.side for row in timings] == ["copy of the same bytes", "HolderMean"]


def test_rounds_on_a_quarter_of_the_channels_and_their_choice_are_timed() -> None:
    setting = Setting("a", clients=4, cohort=2, samples=4, batch_size=2, hidden=(8, 16), size=8)
    timings = [*pruned_rounds(setting, Sequential(), blocks=1), *choices(blocks=1, hidden=(4, 8, 8, 8), clients=5)]
    assert [row.side for row in timings[::2]] == ["dense", "sum of all absolute values"]
    assert [row.side for row in timings[1::2]] == ["a quarter of the channels", "5 parts"]


@pytest.mark.parametrize("density", [0.001, 0.1])
def test_upload_is_checked_and_timed(density: float) -> None:
    assert len(upload(2000, density, blocks=1, slow=True)) == 11


def test_timed_blocks_alternate() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, blocks=3, warmup=1)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_ratios_are_against_the_first_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table: list[Row] = rows("case", {"one": [1.0, 2.0, 9.0], "two": [3.0, 5.0, 4.0]})
    report(table, tmp_path / "times.json")
    assert (table[1].ratio_of_medians, table[1].ratio_of_minima) == (2.0, 3.0)
    assert "2.000" in capsys.readouterr().out
    assert json.loads((tmp_path / "times.json").read_text())["rows"][1]["seconds"] == [3.0, 5.0, 4.0]


@pytest.mark.slow
def test_checkpoints_of_both_stores_are_timed_against_bare_weights() -> None:
    timings = checkpoints(2, blocks=1)
    sizes = {row.side.split(",")[0]: float(row.side.split()[-2]) for row in timings}
    assert [row.case.split()[0] for row in timings] == ["save"] * 3 + ["load"] * 3
    weights = 4 * 11_172_170 / 1e6
    assert sizes["weights alone"] == pytest.approx(weights, rel=0.01)
    assert sizes["DiskStore"] == pytest.approx(weights, rel=0.01)
    assert sizes["MemoryStore"] == pytest.approx(3 * weights, rel=0.01)


def test_the_slope_is_in_bytes_per_round() -> None:
    assert slope(np.arange(10.0), 5.0 + 3.0 * np.arange(10.0)) == pytest.approx(3.0)


def test_rounds_of_a_fleet_are_timed() -> None:
    first, clock = scale(clients=30, cohort=3, rounds=3)
    assert first > 0
    assert len(clock.ends) == len(clock.allocated) == 3


def test_buffered_rounds_of_a_fleet_are_timed() -> None:
    seconds, clock, _ = buffered_rounds(clients=30, size=2, concurrency=4, rounds=3, joining=1)
    assert len(seconds) == len(clock.ends) == 3
    assert min(seconds) > 0


@pytest.mark.slow
def test_rounds_without_training_are_timed_with_a_step_beside_them() -> None:
    step, round = empty_rounds(2)
    assert len(step.seconds) == len(round.seconds) == 2
    assert round.baseline is step.seconds
