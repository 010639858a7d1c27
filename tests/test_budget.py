"""Budgets: the controller against its formulas in NumPy, and how near the uploads of a run come to what was planned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from hetfl.compression import Chain, Compressor, ErrorFeedback, GammaFedHT, HardThreshold, LogQuantizer, TopK
from hetfl.compression.budget import BudgetControl
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import SparseUpdate
from hetfl.wire import Expected, decode, dense_size

ROUNDS, COHORT, CLIENTS = 60, 4, 8
SIZES = (4000, 2000, 1000, 500)
COSINE = [0.05 + 0.95 * (1 + math.cos(math.pi * t / ROUNDS)) / 2 for t in range(ROUNDS)]
SCHEDULES = {
    "cosine": COSINE,
    "steps": [1.0] * 30 + [0.1] * 20 + [0.01] * 10,
    "constant": [1.0] * ROUNDS,
    "1/t": [1 / (1 + t / 5) for t in range(ROUNDS)],
}


class Round(NamedTuple):
    """What an oracle may know of a round: per update ‖Δ‖₁, length, entries sent, bytes, and bytes of no entries."""

    updates: list[tuple[float, int, int, int, int]]
    threshold: float | None
    most: int


def drifts() -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return [random.standard_normal(max(SIZES)) ** 3 * 0.01 for _ in range(CLIENTS)]


def play(
    uplink: ErrorFeedback, lrs: Sequence[float], rounds: range, cohort: int = COHORT, lost: float = 0.0
) -> list[Round]:
    """Play rounds of clients whose deltas are a drift of each and noise, both times the learning rate."""
    towards, history = drifts(), []
    for t in rounds:
        random = np.random.default_rng(100 + t)
        uplink.begin_round(t, lrs[t])
        threshold = uplink.compressor.threshold(lrs[t])
        updates, most = [], 0
        for client in sorted(random.permutation(CLIENTS)[:cohort].tolist()):
            size = SIZES[client % len(SIZES)]
            noise = random.standard_normal(size) ** 3 * 0.02
            delta_D = torch.tensor(lrs[t] * (towards[client][:size] + noise), dtype=torch.float32)
            index = {"w": (slice(0, size),)}
            message = uplink.prepare(client, delta_D, index=index, round=t, lr=lrs[t])
            update = decode(message.payload, Expected(t, client, size))
            if random.random() < lost:
                continue
            report = Report(client, "a", 9, 0.0, up_bytes=len(message.payload), extras=message.extras)
            uplink.observe(update, index, report)
            uplink.keep(message)
            norm = float(np.abs(delta_D.double().numpy()).sum())
            updates.append((norm, size, update.num_sent, len(message.payload), dense_size(0)))
            most = max(most, update.num_sent)
        uplink.end_round(t)
        history.append(Round(updates, threshold, most))
    return history


def uplink_of(compressor: Compressor, lrs: Sequence[float], cohort: int = COHORT) -> ErrorFeedback:
    uplink = ErrorFeedback(compressor)
    facts = Facts((9,) * CLIENTS, rounds=len(lrs), lrs=lrs, cohort=cohort, parameters={"w": torch.zeros(max(SIZES))})
    uplink.setup(facts)
    return uplink


def thresholds(budget: float, lrs: Sequence[float], f: Sequence[float], history: Sequence[Round]) -> list[float]:
    """Return λ_t from round 1 on, by the formulas as they are written down."""
    lrs_T, f_T = np.array(lrs), np.array(f)
    goals = np.array([(lrs_T[t:] / f_T[t:]).sum() for t in range(len(lrs))])
    phi, m, spent, got, mu = math.log(0.3), float(COHORT), 0, [], math.nan
    a = b = 0.0
    overheads, lengths = [], []
    for t, (updates, *_) in enumerate(history):
        beta = max(0.1, 1 / (t + 2))
        norms, sizes, counts, sent_bytes, overhead = (np.array(column) for column in zip(*updates, strict=True))
        m = (1 - beta) * m + beta * len(updates)
        seen = math.log(norms.mean() / lrs[t])
        cost = (sent_bytes - overhead).sum() / counts.sum() if counts.sum() else b
        a, b = (seen, cost) if t == 0 else ((1 - beta) * a + beta * seen, b + beta * (cost - b) * bool(counts.sum()))
        if t >= 3:
            pile = math.log(counts.sum() * math.exp(mu) * f[t] / norms.sum()) if counts.sum() else -math.inf
            phi = (1 - beta) * phi + beta * min(max(pile, phi - 1), phi + 1)
        spent += int(sent_bytes.sum())
        overheads += list(overhead)
        lengths += list(sizes)
        if t + 1 == len(lrs):
            break
        left = budget - spent - float(np.mean(overheads)) * m * (len(lrs) - t - 1)
        if left > 0:
            aim = phi + a + math.log(m * b * goals[t + 1] / left)
            step = 0.04 + 0.5 / (t + 1)
            mu = aim if t == 0 else mu + min(max(aim - mu, -step), step)
        got.append(math.exp(mu) * f[t + 1])
    return got


LAWS: dict[str, Callable[..., HardThreshold]] = {
    "constant": HardThreshold,
    "paper": lambda **budget: GammaFedHT(alpha=0.5, law="paper", **budget),
}


@pytest.mark.parametrize("law", LAWS)
def test_thresholds_of_a_budget_follow_its_formulas(law: str) -> None:
    budget = 150_000.0
    uplink = uplink_of(LAWS[law](budget=budget), COSINE)
    history = play(uplink, COSINE, range(ROUNDS))
    f = [uplink.compressor.scale(lr) for lr in COSINE]  # type: ignore[attr-defined]
    assert [of_round.threshold for of_round in history[1:]] == pytest.approx(
        thresholds(budget, COSINE, f, history), rel=1e-9
    )


def test_the_first_threshold_comes_from_the_clients_own_delta() -> None:
    """Of b bytes an entry, B/(mT) a message in the mean, a first message has k γ_0 / γ̄ entries; λ is 0.3 ‖Δ‖₁ / k."""
    budget, size = 400_000.0, 4000
    uplink = uplink_of(HardThreshold(budget=budget), COSINE)
    uplink.begin_round(0, COSINE[0])
    delta_D = torch.randn(size, generator=torch.Generator().manual_seed(1))
    update = uplink.prepare(0, delta_D, index={"w": (slice(0, size),)}, round=0, lr=COSINE[0])
    sent = decode(update.payload, Expected(0, 0, size))
    assert isinstance(sent, SparseUpdate)

    room = budget / (COHORT * ROUNDS) - dense_size(0)
    entropy = [4 * k + math.log2(math.comb(size, k)) / 8 for k in range(size // 2)]
    mean = max(k for k, needed in enumerate(entropy) if needed <= room)
    planned = mean * COSINE[0] / float(np.mean(COSINE))
    want = delta_D.abs() >= 0.3 * delta_D.abs().sum() / planned
    assert torch.equal(sent.indices, want.nonzero().squeeze(1))


def test_an_exact_block_is_no_entry_that_a_budget_steers() -> None:
    control = BudgetControl(10_000.0)
    control.plan([0.1] * 3, [1.0] * 3, cohort=1)
    control.begin_round()
    update = SparseUpdate(torch.ones(2), torch.tensor([1, 4]), 9, exact=torch.zeros(5))
    control.observe(update, dense_size(0) + 5 * 4 + 16, delta_norm=2.0)
    control.end_round()
    assert control.state.overhead == dense_size(0) + 20
    assert control.state.cost == 8.0


TEN: dict[str, tuple[Callable[[], Compressor], str, int, float]] = {
    "cosine": (lambda: HardThreshold(budget=100_000), "cosine", 4, 0.0),
    "cosine, paper's law": (lambda: GammaFedHT(budget=100_000), "cosine", 4, 0.0),
    "cosine, power law": (lambda: GammaFedHT(budget=100_000, alpha=0.5, law="power"), "cosine", 4, 0.0),
    "steps": (lambda: HardThreshold(budget=100_000), "steps", 4, 0.0),
    "constant": (lambda: HardThreshold(budget=100_000), "constant", 4, 0.0),
    "1/t": (lambda: GammaFedHT(budget=100_000), "1/t", 4, 0.0),
    "all take part": (lambda: HardThreshold(budget=200_000), "cosine", 8, 0.0),
    "all take part, steps": (lambda: GammaFedHT(budget=200_000), "steps", 8, 0.0),
    "a fifth is lost": (lambda: HardThreshold(budget=100_000), "cosine", 4, 0.2),
    "codes": (lambda: Chain(HardThreshold(budget=60_000), LogQuantizer(3)), "cosine", 4, 0.0),
}


@pytest.mark.parametrize("name", TEN)
def test_uploads_meet_the_budget_within_two_percent(name: str) -> None:
    make, schedule, cohort, lost = TEN[name]
    uplink = uplink_of(make(), SCHEDULES[schedule], cohort)
    history = play(uplink, SCHEDULES[schedule], range(ROUNDS), cohort, lost)
    spent = sum(num_bytes for of_round in history for *_, num_bytes, _ in of_round.updates)
    columns = uplink.columns()
    assert columns["budget/spent_bytes"] == spent
    assert spent == pytest.approx(columns["budget/planned_bytes"], rel=0.02)


@pytest.mark.parametrize("density", [0.01, 0.05])
def test_a_mean_density_is_met_within_two_percent(density: float) -> None:
    uplink = uplink_of(HardThreshold(budget=density), COSINE)
    history = play(uplink, COSINE, range(ROUNDS))
    sent = sum(count for of_round in history for _, _, count, _, _ in of_round.updates)
    entries = sum(size for of_round in history for _, size, *_ in of_round.updates)
    assert sent / entries == pytest.approx(density, rel=0.02)
    assert uplink.columns()["budget/planned_entries"] == pytest.approx(density * entries)


def test_a_controller_that_is_stopped_and_loaded_goes_on_alike() -> None:
    whole = uplink_of(GammaFedHT(budget=100_000), COSINE)
    want = play(whole, COSINE, range(ROUNDS))
    first = uplink_of(GammaFedHT(budget=100_000), COSINE)
    play(first, COSINE, range(23))
    again = uplink_of(GammaFedHT(budget=100_000), COSINE)
    again.load_state_dict(first.state_dict())
    assert play(again, COSINE, range(23, ROUNDS)) == want[23:]


def test_a_run_that_is_made_longer_still_meets_its_budget() -> None:
    first = uplink_of(HardThreshold(budget=100_000), [1.0] * 30)
    play(first, [1.0] * 30, range(20))
    longer = uplink_of(HardThreshold(budget=100_000), [1.0] * ROUNDS)
    longer.load_state_dict(first.state_dict())
    play(longer, [1.0] * ROUNDS, range(20, ROUNDS))
    assert longer.columns()["budget/spent_bytes"] == pytest.approx(100_000, rel=0.02)


def test_a_client_that_reports_a_huge_norm_does_not_stop_the_others() -> None:
    class Liar(HardThreshold):
        def report(self, delta_D: torch.Tensor) -> dict[str, float]:
            norms = super().report(delta_D)
            return norms if delta_D.numel() != SIZES[1] else dict.fromkeys(norms, 1e30)

    uplink = uplink_of(Liar(budget=100_000), COSINE)
    play(uplink, COSINE, range(ROUNDS))
    assert uplink.columns()["budget/spent_bytes"] == pytest.approx(100_000, rel=0.05)


def test_nothing_is_sent_once_the_budget_is_spent() -> None:
    uplink = uplink_of(HardThreshold(budget=40_000), [1.0] * ROUNDS)
    play(uplink, [1.0] * ROUNDS, range(30))
    state = uplink.state_dict()
    state["compressor"]["spent"] = 40_000.0
    uplink.load_state_dict(state)
    assert {count for each in play(uplink, [1.0] * ROUNDS, range(30, 40)) for _, _, count, _, _ in each.updates} == {0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HardThreshold(budget=0.0), "budget above 0"),
        (lambda: HardThreshold(budget=math.inf), "budget above 0"),
        (lambda: HardThreshold(0.1, budget=0.1), "exactly one of threshold, density and budget"),
        (lambda: HardThreshold(budget=0.1, scope="layer"), "scope: global with a budget"),
        (lambda: uplink_of(HardThreshold(budget=2000), COSINE), "above the 13440 bytes of the headers of 60 rounds"),
        (lambda: uplink_of(HardThreshold(budget=0.1), [0.0] * 3), "learning rate above 0"),
        (lambda: HardThreshold(budget=0.1).begin_round(0.1), "trainer.max_epochs"),
        (lambda: HardThreshold(budget=0.1).compress(torch.ones(3), lr=0.1), "outside of a run"),
        (lambda: uplink_of(TopK(0.1, schedule="lr"), [0.0] * 3), "learning rate above 0"),
        (lambda: TopK(0.1, schedule="lr").compress(torch.ones(3), lr=0.1), "schedule of a run"),
    ],
)
def test_wrong_budgets(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_top_k_by_learning_rate_has_its_density_in_the_mean() -> None:
    uplink = uplink_of(TopK(0.01, schedule="lr"), COSINE)
    history = play(uplink, COSINE, range(ROUNDS))
    for t, of_round in enumerate(history):
        for _, size, count, _, _ in of_round.updates:
            assert count == max(1, math.floor(0.01 * COSINE[t] / np.mean(COSINE) * size + 1e-9))
