"""Measures of clients' values against values by hand and NumPy, and the mean that is weighted by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor

from hetfl import FederatedModule
from hetfl.aggregators import ValueFilter, ValueMean
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.local import Workers
from hetfl.part import Part
from hetfl.piece import Facts, Piece
from hetfl.selection import ByValue, Uniform
from hetfl.testing import check_aggregator
from hetfl.testing.selections import Answers
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from hetfl.value import GradientCosine, Reputation, Value
from tests.conftest import small_module

Fit = Callable[..., Trainer]
UPDATES = [[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]]


def observed(value: Value, updates: Sequence[Sequence[float]], held: Sequence[Sequence[int]], size: int) -> Value:
    """Return a measure that has observed a round of updates of entries of a vector."""
    value.setup(Facts(sizes=[3] * len(updates), parameters={"w": torch.zeros(size)}))
    next_round(value, updates, held)
    return value


def next_round(value: Piece, updates: Sequence[Sequence[float]], held: Sequence[Sequence[int]]) -> None:
    value.begin_round(0, 0.1)
    for client, (update, entries) in enumerate(zip(updates, held, strict=True)):
        part = Part({"w": (torch.tensor(entries, dtype=torch.int64),)})
        value.observe(DenseUpdate(torch.tensor(update)), part, Report(client, "a", 3, 0.5))


def test_the_cosine_with_the_others_has_its_values_by_hand() -> None:
    both = [[0, 1]] * 3
    with_itself = observed(GradientCosine(leave_out=False), UPDATES, both, 2).of_round()
    assert list(with_itself.values()) == pytest.approx([0.8, 1.0, -0.8])
    without = observed(GradientCosine(), UPDATES, both, 2).of_round()
    assert list(without.values()) == pytest.approx([-0.316228, 0.0, -0.948683], abs=1e-6)


def test_only_updates_of_the_same_global_model_are_compared() -> None:
    """Client 0 trains both models: 0.8 in model 0, and 0 in model 1."""
    value, whole = GradientCosine(), Part({"w": (torch.arange(2),)})
    value.setup(Facts(sizes=[3] * 3, parameters={"w": torch.zeros(2)}))
    for round in range(2):  # nothing of the first round is left in the second
        value.begin_round(round, 0.1)
        for client, model, update in ((0, 0, [1.0, 0.0]), (1, 0, [0.8, 0.6]), (0, 1, [0.0, 2.0]), (2, 1, [3.0, 0.0])):
            value.observe(DenseUpdate(torch.tensor(update)), whole, Report(client, "a", 3, 0.5, model=model))
        assert value.of_round() == pytest.approx({0: 0.4, 1: 0.8, 2: 0.0})
        value.end_round(round)


@given(st.integers(0, 10_000))
def test_the_cosine_is_over_the_entries_that_others_hold(seed: int) -> None:
    random = np.random.default_rng(seed)
    held = [sorted(random.choice(6, random.integers(1, 7), replace=False).tolist()) for _ in range(4)]
    updates = [random.integers(-3, 4, len(entries)).astype(float) for entries in held]
    values = observed(GradientCosine(), [each.tolist() for each in updates], held, 6).of_round()
    for client, entries in enumerate(held):
        mine, others = [], []
        for j in range(6):
            rest = [updates[i][held[i].index(j)] for i in range(4) if i != client and j in held[i]]
            if j in entries and rest:
                mine.append(updates[client][entries.index(j)])
                others.append(np.mean(rest))
        norms = np.linalg.norm(mine) * np.linalg.norm(others)
        assert values[client] == pytest.approx(np.dot(mine, others) / norms if norms else 0.0, abs=1e-6)


def test_reputations_have_their_values_by_hand_over_two_rounds() -> None:
    value, both = Reputation(), [[0, 1]] * 3
    observed(value, UPDATES, both, 2)
    value.end_round(0)
    assert value.reputations == pytest.approx([0.459087, 0.540103, 0.00081], abs=1e-6)
    next_round(value, UPDATES, both)
    value.end_round(1)
    assert value.reputations == pytest.approx([0.453448, 0.545719, 0.000833], abs=1e-6)


def test_a_client_that_is_away_keeps_its_share_of_reputation() -> None:
    value = Reputation()
    observed(value, UPDATES[:2], [[0, 1]] * 2, 2)
    value.end_round(0)
    before, updates = list(value.reputations), list(value.updates)
    value.begin_round(1, 0.1)
    value.end_round(1)
    assert value.reputations == pytest.approx(before)
    assert value.updates == updates == [1, 1]


def test_a_newcomer_has_no_reputation_and_is_treated_as_the_others() -> None:
    """Clients 0 and 1 of five report in ten rounds; client 4 reports for the first time afterwards."""
    policy, mean, filter = ByValue(2, explore=0.0), ValueMean(), ValueFilter()
    for piece in (policy, mean, filter):
        piece.setup(Facts((5,) * 5, 2, ("a",), 1, {"w": torch.zeros(2)}))
        for round in range(10):
            next_round(piece, [[1.0, 2.0], [1.0, 2.5]], [[0, 1]] * 2)
            piece.end_round(round)
        piece.begin_round(10, 0.1)
        assert isinstance(piece.value, Reputation)
        assert piece.value.of_round().keys() == piece.values.keys() == {0, 1}
        assert len(piece.value.reputations) == 5
        assert sum(piece.value.reputations) == pytest.approx(1.0)
    newcomer = Report(4, "a", 5, 0.5)
    assert filter.kept(4)
    assert mean.weight(newcomer) == pytest.approx(sum(mean.values.values()) / 2)
    known = max(policy.values, key=lambda client: policy.values[client])
    assert set(policy.select(10, Answers(0, 10, range(5)))) == {
        known,
        2,
    }  # 2 has the mean, which is above the other's value


class Given(Value):
    """Values that are given."""

    def __init__(self, values: Mapping[int, float]) -> None:
        self.values = dict(values)

    def of_round(self) -> dict[int, float]:
        return self.values


def mean_of(values: Mapping[int, float], updates: Sequence[Sequence[float]], held: Sequence[Sequence[int]]) -> Tensor:
    """Return the second round's mean of updates, whose clients were given values in the first."""
    mean, tensors = ValueMean(Given(values)), {"w": torch.zeros(4)}
    for round in range(2):
        mean.begin_round(round, 0.1)
        mean.reset(tensors)
        for client, (update, entries) in enumerate(zip(updates, held, strict=True)):
            part: Index = Part({"w": (torch.tensor(entries, dtype=torch.int64),)})
            mean.update(DenseUpdate(torch.tensor(update)), part, Report(client, "a", 3 + client, 0.5))
        step, _ = mean.compute()
        mean.end_round(round)
    return step["w"].clone()


def test_values_of_a_round_weigh_the_next_updates() -> None:
    updates, held = [[0.4] * 4, [0.8] * 2], [[0, 1, 2, 3], [2, 3]]
    assert mean_of({0: 2.0, 1: 1.0}, updates, held).tolist() == pytest.approx([0.4, 0.4, 0.5333, 0.5333], abs=1e-4)
    # A client without a value weighs as the mean of the others, and a worthless one a thousandth of the mean.
    assert mean_of({0: 2.0}, updates, held).tolist() == pytest.approx([0.4, 0.4, 0.6, 0.6])
    assert mean_of({0: 2.0, 1: -5.0}, updates, held)[3] == pytest.approx((2.0 * 0.4 + 2e-3 * 0.8) / 2.002)
    # Before there are values, clients weigh by their samples.
    assert mean_of({}, updates, held)[3] == pytest.approx((3 * 0.4 + 4 * 0.8) / 7)


def test_the_mean_fulfils_the_contract_and_refuses_values_that_are_not_finite() -> None:
    check_aggregator(ValueMean)
    with pytest.raises(ConfigurationError, match=r"finite values from Given\(.*\) but got nan of client 1 in round 1"):
        mean_of({0: 1.0, 1: float("nan")}, [[0.4], [0.8]], [[0], [1]])
    with pytest.raises(ConfigurationError, match=r"floor in \(0, 1\] but got 0"):
        ValueMean(floor=0)
    with pytest.raises(ConfigurationError, match=r"tradeoff in \[0, 1\).* but got 1.0, 0.001"):
        Reputation(tradeoff=1.0)


def test_a_resumed_run_has_the_same_values_and_bits(fit: Fit, tmp_path: Path) -> None:
    def module(**changes: Any) -> FederatedModule:
        uplink = ErrorFeedback(TopK(0.2))
        return small_module(aggregator=ValueMean(), selection=Uniform(6), uplink=uplink, **changes)

    whole, first, second = module(executor=Workers(2)), module(), module()
    fit(whole, rounds=4, name="whole", limit_val_batches=0)
    fit(first, rounds=2, name="begun", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, rounds=4, name="resumed", limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    values = [module.aggregator.first.values for module in (whole, second)]  # type: ignore[attr-defined]
    assert values[0] == values[1]
    reputations = [module.aggregator.first.value.reputations for module in (whole, second)]  # type: ignore[attr-defined]
    assert reputations[0] == reputations[1]
    assert len(reputations[0]) == 12
    assert sum(reputations[0]) == pytest.approx(1.0)
    assert np.std(list(values[0].values())) > 0.0
