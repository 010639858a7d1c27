"""Properties of every partitioner, and the rules of NIID-Bench against plain re-implementations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.data import IID, Dirichlet, LabelShards, NaturalIds, Partitioner, PathologicalLabels, QuantitySkew
from hetfl.data.partition import class_counts
from hetfl.data.redrawn import dirichlet, whole_shares
from hetfl.errors import ConfigurationError
from hetfl.testing import check_partitioner

MAKERS: dict[str, Callable[[int], Partitioner]] = {
    "IID": lambda n: IID(),
    "Dirichlet": lambda n: Dirichlet((1e-3, 0.1, 0.5, 1e6)[n - 1], min_samples=n),
    "QuantitySkew": lambda n: QuantitySkew((1e-3, 0.5, 10.0, 1e6)[n - 1], min_samples=n),
    "PathologicalLabels": PathologicalLabels,
    "LabelShards": LabelShards,
    "NaturalIds": lambda n: NaturalIds(),
}
"""Every partitioner, as a function of a number from 1 to 4; a new partitioner adds one line."""
LEAVES_OUT = {"LabelShards"}
"""Partitioners that may leave samples without an owner."""
MIN_SAMPLES = {"Dirichlet", "QuantitySkew"}
"""Partitioners that guarantee a number of samples per client."""


def random_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(num_samples: int, num_classes: int, seed: int) -> Tensor:
    return torch.randint(0, num_classes, (num_samples,), generator=random_generator(seed))


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=60)
@given(
    n=st.integers(1, 4),
    num_samples=st.integers(1, 300),
    num_classes=st.integers(1, 12),
    num_clients=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_every_rule_returns_a_partition_or_a_one_line_error(
    name: str, n: int, num_samples: int, num_classes: int, num_clients: int, seed: int
) -> None:
    partitioner, labels = MAKERS[name](n), labels_of(num_samples, num_classes, seed)
    parts, refused = [], ""
    try:
        parts = partitioner(labels, num_clients, random_generator(seed))
    except ConfigurationError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("Expected ")
        assert "\n" not in refused
        return
    assert num_clients <= num_samples
    flat = torch.cat(parts).tolist()
    assert len(parts) == num_clients
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(num_samples))
    if name not in LEAVES_OUT:
        assert len(flat) == num_samples
    if name in MIN_SAMPLES:
        assert min(len(part) for part in parts) >= n
    assert all(part.dtype == torch.int64 for part in parts)
    again = partitioner(labels, num_clients, random_generator(seed))
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_every_partitioner_fulfils_the_contract(name: str) -> None:
    check_partitioner(lambda: MAKERS[name](2), leaves_out=name in LEAVES_OUT)


@pytest.mark.parametrize("name", MAKERS)
def test_more_clients_than_samples_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match="Expected 1 client to 20, the number of samples, but got num_clients=21"
    ):
        MAKERS[name](1)(labels_of(20, 2, 0), 21, random_generator(0))


@pytest.mark.parametrize("partitioner", [QuantitySkew(1.0), PathologicalLabels(2)], ids=lambda p: type(p).__name__)
def test_a_different_generator_gives_a_different_partition(partitioner: Partitioner) -> None:
    labels = labels_of(900, 10, 0)
    first, other = (partitioner(labels, 10, random_generator(seed)) for seed in (1, 2))
    assert any(not torch.equal(one, two) for one, two in zip(first, other, strict=True))


# --- quantity skew ---


@given(weights=st.lists(st.floats(1e-300, 1.0), min_size=1, max_size=30), total=st.integers(0, 10**6))
def test_whole_shares_add_up_and_are_near_the_exact_shares(weights: list[float], total: int) -> None:
    proportions = np.array(weights) / np.sum(weights)
    shares = whole_shares(proportions, total)
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert np.abs(shares - proportions * total).max() <= 1 + 1e-6


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_quantity_skew_has_the_moments_of_its_distribution(beta: float) -> None:
    labels, clients = torch.zeros(2000, dtype=torch.int64), 5
    partitioner = QuantitySkew(beta, min_samples=0)
    sizes = np.array([[len(part) for part in partitioner(labels, clients, random_generator(s))] for s in range(1500)])
    shares, a = sizes / 2000, 1 / clients
    np.testing.assert_allclose(shares.mean(axis=0), a, atol=0.025)
    # Variance of one entry of Dir(beta 1): a(1-a)/(N beta + 1).
    np.testing.assert_allclose(shares.var(axis=0), a * (1 - a) / (clients * beta + 1), rtol=0.15)


def test_quantity_skew_does_not_change_the_class_mix() -> None:
    labels = torch.arange(10).repeat_interleave(2000)
    parts = QuantitySkew(0.5)(labels, 6, random_generator(3))
    sizes = torch.tensor([len(part) for part in parts])
    assert sizes.max() > 3 * sizes.min()
    for part, counts in zip(parts, class_counts(labels, parts, 10), strict=True):
        # Drawn without replacement: each class count is hypergeometric; five standard deviations are allowed.
        assert (counts - len(part) / 10).abs().max() <= 5 * (len(part) * 0.09) ** 0.5


def test_quantity_skew_is_even_or_extreme_at_the_ends_of_beta() -> None:
    labels = labels_of(1000, 10, 0)
    even = [len(part) for part in QuantitySkew(1e7)(labels, 10, random_generator(0))]
    assert max(even) - min(even) <= 3
    skewed = [len(part) for part in QuantitySkew(1e-3, min_samples=0)(labels, 10, random_generator(0))]
    assert max(skewed) >= 999


def test_quantity_skew_that_cannot_be_met_is_refused_after_its_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[int] = []

    def counting(beta: float, size: int, rng: np.random.Generator) -> np.ndarray:
        draws.append(size)
        return dirichlet(beta, size, rng)

    monkeypatch.setattr("hetfl.data.quantity_skew.dirichlet", counting)
    with pytest.raises(
        ConfigurationError, match=r"\(QuantitySkew min_samples\) but the best of 7 draws gave \d+, with"
    ):
        QuantitySkew(0.01, max_tries=7)(labels_of(500, 10, 0), 40, random_generator(0))
    assert draws == [40] * 7
    with pytest.raises(ConfigurationError, match="there are too few samples, with beta=1.0, num_clients=51"):
        QuantitySkew(1.0)(labels_of(500, 10, 0), 51, random_generator(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, r"finite beta \(QuantitySkew\) but got 0.0"),
        ({"beta": float("nan")}, "but got nan"),
        ({"beta": 1.0, "max_tries": 0}, "max_tries >= 1 .QuantitySkew. but got 10 and 0"),
    ],
)
def test_quantity_skew_refuses_wrong_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QuantitySkew(**arguments)  # type: ignore[arg-type]


# --- a fixed number of labels ---


@settings(max_examples=60)
@given(num_classes=st.integers(1, 8), extra=st.integers(0, 20), n=st.integers(1, 8), seed=st.integers(0, 2**31))
def test_every_client_has_its_first_class_and_the_given_number_of_others(
    num_classes: int, extra: int, n: int, seed: int
) -> None:
    assume(n <= num_classes)
    num_clients = num_classes + extra
    # Class numbers may have gaps: class i is the i-th one that occurs.
    labels = 3 * torch.cat([torch.arange(num_classes).repeat(num_clients), labels_of(50, num_classes, seed)]) + 1
    parts = PathologicalLabels(n)(labels, num_clients, random_generator(seed))
    has = [set(labels[part].tolist()) for part in parts]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert all(len(classes) == n and 3 * (client % num_classes) + 1 in classes for client, classes in enumerate(has))
    for label in labels.unique().tolist():
        sizes = [
            int((labels[part] == label).sum()) for part, classes in zip(parts, has, strict=True) if label in classes
        ]
        assert sum(sizes) == int((labels == label).sum())
        assert max(sizes) - min(sizes) <= 1


def test_the_other_labels_are_uniform() -> None:
    labels = torch.arange(5).repeat_interleave(400)
    counts = torch.zeros(5)
    for seed in range(60):
        parts = PathologicalLabels(2)(labels, 50, random_generator(seed))
        counts += (class_counts(labels, parts, 5) > 0).sum(dim=0)
    # 3000 draws: each class is the first one of 600 clients and the other one of (3000 - 600) / 4 = 600; sd about 22.
    assert (counts - 1200).abs().max() < 110


def test_client_size_does_not_depend_on_the_client_number() -> None:
    labels = torch.zeros(15, dtype=torch.int64)
    partitioner = PathologicalLabels(1)
    larger = sum(
        torch.tensor([len(part) > 1 for part in partitioner(labels, 10, random_generator(seed))]).int()
        for seed in range(200)
    )
    assert isinstance(larger, Tensor)
    assert larger.min() > 60  # mean 100 of 200, standard deviation 7
    assert larger.max() < 140


@pytest.mark.parametrize(
    ("n", "num_clients", "labels", "message"),
    [
        (2, 9, torch.arange(10).repeat(9), "num_clients of at least 10, the number of classes, .* but got 9"),
        (4, 9, torch.arange(3).repeat(9), "at most 3, the number of classes, but got 4"),
        (1, 4, torch.tensor([0] * 30 + [1]), r"at least 2 samples of class 1, one for each client .* but got 1"),
    ],
)
def test_labels_that_cannot_be_dealt_to_all_clients_are_refused(
    n: int, num_clients: int, labels: Tensor, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PathologicalLabels(n)(labels, num_clients, random_generator(0))


def test_zero_labels_per_client_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1 but got 0"):
        PathologicalLabels(0)
