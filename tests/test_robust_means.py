"""The clipped mean and multi-Krum: NumPy's definitions, invariants, and hostile clients in runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from hetfl.aggregators import Aggregator, ClippedMean, CoordinateMedian, HolderMean, MultiKrum, TrimmedMean
from hetfl.aggregators.clipping import Length, clip_factors
from hetfl.aggregators.per_model import Aggregators
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Index
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.testing import check_aggregator
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update
from tests.robust_cases import Array, Client, cohort, played, scaled, spread


def flat(client: Client) -> tuple[Array, Array]:
    return client.update.to_dense().numpy(), client.update.exact.numpy()


def multi_krum(vectors: Array, hostile: int) -> list[int]:
    """Return the chosen rows, in plain loops."""
    count, scores = len(vectors), []
    for k in range(count):
        others = sorted(float(((vectors[k] - vectors[i]) ** 2).sum()) for i in range(count) if i != k)
        scores.append(sum(others[: count - hostile - 2]))
    return sorted(sorted(range(count), key=lambda k: (scores[k], k))[: count - hostile])


@pytest.mark.parametrize("make", [ClippedMean, MultiKrum, partial(ClippedMean, 2.5), partial(MultiKrum, 0.4)])
def test_every_rule_fulfils_the_contract(make: Callable[[], Aggregator]) -> None:
    check_aggregator(make)


def test_a_clipped_mean_clips_vector_and_buffers_by_the_medians_of_a_level() -> None:
    clients = cohort("aaaabbbb")
    clients[1], clients[6] = scaled(clients[1], 10.0), scaled(clients[6], -30.0)
    expected = []
    for client in clients:
        peers = [flat(each) for each in clients if each.report.level == client.report.level]
        scales = []
        for block, own in enumerate(flat(client)):
            bound = float(np.median([np.linalg.norm(peer[block]) for peer in peers]))
            scales.append(min(1.0, bound / float(np.linalg.norm(own))))
        vector, exact = flat(client)
        update = DenseUpdate(torch.from_numpy(vector * scales[0]), exact=torch.from_numpy(exact * scales[1]))
        expected.append(replace(client, update=update))
    steps, _ = played(ClippedMean(), clients)
    for name, values in spread(expected).items():
        assert np.allclose(steps[name], np.nan_to_num(np.nanmean(values, axis=0)), atol=1e-12)


def test_a_large_factor_makes_a_clipped_mean_the_mean() -> None:
    clients = cohort("abcabc", positions=True, masked=True)
    for one, other in zip(played(ClippedMean(100.0), clients), played(HolderMean(), clients), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_level_of_two_takes_the_bound_of_the_nearest_size() -> None:
    lengths = [Length("a", 800.0, 64), Length("a", 8.0, 64), *[Length("b", 4.0 + k, 16) for k in (-2, 0, 2)]]
    lengths += [Length("c", 100.0, 1)] * 3
    assert clip_factors(lengths) == pytest.approx([8.0 / 800.0, 1.0, 1.0, 1.0, 4.0 / 6.0, 1.0, 1.0, 1.0])
    assert clip_factors(lengths[:2]) == pytest.approx([404.0 / 800.0, 1.0])
    assert clip_factors([Length("a", 0.0, 4)]) == [1.0]


@pytest.mark.parametrize("seed", range(4))
def test_with_one_level_multi_krum_is_that_of_the_paper(seed: int) -> None:
    clients = cohort("a" * 10, seed=seed)
    clients[3], clients[8] = scaled(clients[3], 9.0), scaled(clients[8], 4.0)
    vectors = np.stack([flat(client)[0] for client in clients])
    chosen = multi_krum(vectors, hostile=2)
    assert 3 not in chosen
    steps, holders = played(MultiKrum(0.2), clients)
    values = spread(clients)
    for name in steps:
        assert np.allclose(steps[name], values[name][chosen].mean(0), atol=1e-12)
        assert (holders[name] == len(chosen)).all()


@pytest.mark.parametrize("masked", [False, True])
def test_multi_krum_measures_the_core_and_clips_the_shells(masked: bool) -> None:
    clients = cohort("aaaabbbbcc", seed=2, masked=masked)
    values = spread(clients)
    core = {name: ~np.isnan(array).any(0) for name, array in values.items()}
    on_core = np.stack(
        [np.concatenate([values[name][k][core[name]] for name in ("kernel", "bias", "scale")]) for k in range(10)]
    )
    chosen = multi_krum(on_core, hostile=2)
    steps, holders = played(MultiKrum(0.2), clients)
    shells = [np.concatenate([values[n][k][~core[n]] for n in ("kernel", "bias", "scale")]) for k in range(10)]
    lengths = []
    for client, shell in zip(clients, shells, strict=True):
        held = shell[~np.isnan(shell)]
        lengths.append(Length(client.report.level, float(np.linalg.norm(held)), len(held)))
    factors = np.array(clip_factors(lengths))
    for name in ("kernel", "bias"):
        factor = np.where(core[name], 1.0, factors.reshape(-1, *[1] * core[name].ndim))
        kept = (values[name] * factor)[chosen]
        count = (~np.isnan(kept)).sum(0)
        assert np.array_equal(holders[name], count)
        assert np.allclose(steps[name], np.nansum(kept, axis=0) / np.maximum(count, 1), atol=1e-12)


@pytest.mark.parametrize("make", [ClippedMean, MultiKrum, CoordinateMedian, TrimmedMean])
@pytest.mark.parametrize("masked", [False, True])
def test_the_order_of_clients_changes_no_bit(make: Callable[[], Aggregator], masked: bool) -> None:
    clients = cohort("abcabcab", masked=masked)
    for one, other in zip(played(make(), clients), played(make(), clients[::-1]), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("make", [MultiKrum, CoordinateMedian, TrimmedMean])
@pytest.mark.parametrize("factor", [-5.0, 1e15])
def test_two_of_ten_cannot_move_an_entry_far(make: Callable[[], Aggregator], factor: float) -> None:
    clients = cohort("a" * 10)
    honest = np.abs(np.concatenate([flat(client)[0] for client in clients])).max()
    clients[2], clients[5] = scaled(clients[2], factor), scaled(clients[5], factor)
    steps, _ = played(make(), clients)
    assert all(np.abs(step).max() <= honest for name, step in steps.items() if name != "running_mean")


def test_variances_of_copies_are_checked_and_shared_tensors_by_no_other_model() -> None:
    names = ("weight", "running_var@b")
    models = [{"weight": torch.zeros(1), "running_var@b": torch.tensor([each])} for each in (0.1, 5.0)]
    part = Part({name: (slice(0, 1),) for name in names})
    aggregators = Aggregators(ClippedMean())
    aggregators.setup(Facts())
    aggregators.reset(models, frozenset(["weight"]))
    update = DenseUpdate(torch.ones(1), exact=torch.tensor([-1.0]))
    aggregators.update(update, part, Report(0, "b", 1, 0.0, model=1))
    with pytest.raises(RefusedUpdate, match="variances of at least 0 in running_var@b but got -0.9"):
        aggregators.update(update, part, Report(1, "b", 1, 0.0, model=0))
    _, steps, _ = aggregators.compute(lambda model, steps, holders: steps)
    assert {name: step.tolist() for name, step in steps.items()} == {
        "weight": [1.0],
        "running_var@b": [0.0],
        "1:running_var@b": [-1.0],
    }


class Counting(HolderMean):
    """Has the number of its updates, and the numbers of samples, as columns."""

    def begin_round(self, round: int, lr: float) -> None:
        self.samples: list[int] = []

    def update(self, update: Update, index: Index, report: Report) -> None:
        super().update(update, index, report)
        self.samples.append(report.samples)

    def columns(self) -> dict[str, float]:
        ends = {"x/lowest": min(self.samples), "x/highest": max(self.samples)} if self.samples else {}
        return {"x/updates": len(self.samples), **ends}


def test_columns_are_those_of_all_models_and_count_shared_tensors_once() -> None:
    aggregators, names = Aggregators(Counting()), ("weight", "shared")
    aggregators.begin_round(0, 0.1)
    aggregators.reset([{name: torch.zeros(1) for name in names} for _ in range(3)], frozenset(["shared"]))
    part = Part({name: (slice(0, 1),) for name in names})
    for client, (model, samples) in enumerate(((2, 7), (0, 4), (2, 3))):
        aggregators.update(DenseUpdate(torch.ones(2)), part, Report(client, "a", samples, 0.0, model=model))
    assert aggregators.columns() == {"x/updates": 3, "x/lowest": 3, "x/highest": 7}


def test_clients_without_a_common_entry_are_refused() -> None:
    aggregator = MultiKrum()
    aggregator.reset({"w": torch.zeros(4)})
    for client in range(2):
        part = Part({"w": (slice(2 * client, 2 * client + 2),)})
        aggregator.update(DenseUpdate(torch.ones(2)), part, Report(client, "a", 1, 0.0))
    with pytest.raises(ConfigurationError, match="that all clients of a round hold for MultiKrum"):
        aggregator.compute()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClippedMean(0.0), "factor above 0 for ClippedMean but got 0.0"),
        (lambda: ClippedMean(math.inf), "finite factor above 0 for ClippedMean but got inf"),
        (lambda: MultiKrum(0.5), r"share in \[0, 0.5\) for MultiKrum but got 0.5"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
