"""Partitioners against slow, obvious re-implementations."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl.data import IID, Dirichlet, LabelShards, NaturalIds, Partitioner, matched_partition
from hetfl.data.matched import largest_remainder
from hetfl.data.partition import class_counts, positions_by_owner
from hetfl.data.redrawn import dirichlet
from hetfl.errors import ConfigurationError


def random_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(num_samples: int, num_classes: int, seed: int) -> Tensor:
    return torch.randint(0, num_classes, (num_samples,), generator=random_generator(seed))


def as_lists(parts: list[Tensor]) -> list[list[int]]:
    return [part.tolist() for part in parts]


def flatten(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def lenient(beta: float) -> Dirichlet:
    return Dirichlet(beta, min_samples=0)


@settings(max_examples=60)
@given(
    num_samples=st.integers(1, 300),
    num_classes=st.integers(1, 12),
    num_clients=st.integers(1, 40),
    beta=st.sampled_from([1e-3, 0.1, 0.5, 10.0, 1e6, None]),
    seed=st.integers(0, 2**31),
)
def test_every_sample_goes_to_exactly_one_client(
    num_samples: int, num_classes: int, num_clients: int, beta: float | None, seed: int
) -> None:
    labels = labels_of(num_samples, num_classes, seed)
    partitioner = IID() if beta is None else lenient(beta)
    if num_clients > num_samples:
        with pytest.raises(ConfigurationError, match=f"got num_clients={num_clients}"):
            partitioner(labels, num_clients, random_generator(seed))
        return
    parts = partitioner(labels, num_clients, random_generator(seed))
    assert len(parts) == num_clients
    assert sorted(flatten(as_lists(parts))) == list(range(num_samples))
    assert all(part.dtype == torch.int64 for part in parts)


@pytest.mark.parametrize("partitioner", [IID(), lenient(0.5), LabelShards(2)], ids=lambda p: type(p).__name__)
def test_a_partition_is_a_function_of_the_generator(partitioner: Partitioner) -> None:
    labels = labels_of(600, 10, 0)
    first, again, other = (as_lists(partitioner(labels, 20, random_generator(seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@given(num_samples=st.integers(1, 200), num_clients=st.integers(1, 50))
def test_iid_shares_differ_by_at_most_one_sample(num_samples: int, num_clients: int) -> None:
    assume(num_clients <= num_samples)
    sizes = [len(part) for part in IID()(torch.zeros(num_samples).long(), num_clients, random_generator(0))]
    assert sizes == [num_samples // num_clients + (k < num_samples % num_clients) for k in range(num_clients)]


@pytest.mark.parametrize(
    "partitioner", [IID(), Dirichlet(0.1, min_samples=20), NaturalIds()], ids=lambda p: type(p).__name__
)
def test_a_single_client_gets_all_samples(partitioner: Partitioner) -> None:
    labels = torch.zeros(30, dtype=torch.int64) if partitioner.by_client_id else labels_of(30, 3, 0)
    (part,) = partitioner(labels, 1, random_generator(0))
    assert sorted(part.tolist()) == list(range(30))


@pytest.mark.parametrize("num_clients", [0, -1])
def test_fewer_than_one_client_is_refused(num_clients: int) -> None:
    with pytest.raises(ConfigurationError, match="num_clients"):
        IID()(torch.zeros(5).long(), num_clients, random_generator(0))


# --- Dirichlet ---


def test_dirichlet_digits_sizes_reach_ten_samples_within_the_default_tries() -> None:
    for seed in range(40):
        parts = Dirichlet(0.5)(labels_of(1293, 10, seed), 50, random_generator(seed))
        assert min(len(part) for part in parts) >= 10


def test_dirichlet_with_tiny_beta_gives_a_class_to_one_client() -> None:
    labels = torch.arange(10).repeat_interleave(100)
    parts = lenient(1e-3)(labels, 10, random_generator(3))
    largest_share = class_counts(labels, parts, 10).max(dim=0).values / 100
    assert (largest_share > 0.95).float().mean() >= 0.8


def test_dirichlet_with_huge_beta_is_nearly_uniform() -> None:
    labels = torch.arange(4).repeat_interleave(1000)
    counts_NK = class_counts(labels, lenient(1e6)(labels, 10, random_generator(0)), 4)
    # The first three classes are dealt to all ten clients; rounding and sqrt(beta) noise are a few samples.
    assert (counts_NK[:, :3] - 100).abs().max() <= 3


def test_dirichlet_gives_no_more_samples_to_full_clients() -> None:
    labels = torch.arange(5).repeat_interleave(40)
    counts_NK = class_counts(labels, lenient(0.2)(labels, 10, random_generator(5)), 5)
    before_NK = counts_NK.cumsum(dim=1) - counts_NK
    assert (before_NK >= 20).any()
    assert (counts_NK[before_NK >= 20] == 0).all()


@pytest.mark.parametrize("beta", [5e-324, 1e-310, 1e-3, 0.5, 3.0, 1e6])
def test_dirichlet_vectors_have_the_moments_of_the_distribution(beta: float) -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([dirichlet(beta, 4, rng) for _ in range(20000)])
    assert np.isfinite(draws).all()
    np.testing.assert_allclose(draws.sum(axis=1), 1)
    np.testing.assert_allclose(draws.mean(axis=0), 0.25, atol=0.015)
    # Variance of one entry: a(1-a)/(N beta + 1) with a = 1/N.
    np.testing.assert_allclose(draws.var(axis=0), 0.25 * 0.75 / (4 * beta + 1), rtol=0.06)


def test_an_impossible_dirichlet_partition_is_refused_with_advice() -> None:
    labels = labels_of(500, 10, 0)
    with pytest.raises(
        ConfigurationError, match=r"Expected 10 samples .* best of 3 draws gave \d+, with beta=0.01"
    ) as error:
        Dirichlet(0.01, max_tries=3)(labels, 40, random_generator(0))
    assert "\n" not in str(error.value)
    with pytest.raises(
        ConfigurationError, match="too few samples, with beta=1.0, num_clients=51, 500 samples: lower min"
    ):
        Dirichlet(1.0)(labels, 51, random_generator(0))


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_dirichlet_refuses_a_wrong_beta(beta: float) -> None:
    with pytest.raises(ConfigurationError, match="beta"):
        Dirichlet(beta)


# --- label shards ---


def slow_shards(labels: list[int], num_clients: int, n: int, generator: torch.Generator) -> list[list[int]]:
    """HeteroFL's non-iid-n with plain lists, drawing from the generator in the same order."""
    classes = sorted(set(labels))
    per_class = n * num_clients // len(classes)
    deck = [c for _ in range(per_class) for c in classes]
    deck = [deck[i] for i in torch.randperm(len(deck), generator=generator).tolist()]
    stacks: dict[int, list[list[int]]] = {}
    for c in classes:
        positions = [i for i, label in enumerate(labels) if label == c]
        size, left_over = len(positions) // per_class, len(positions) % per_class
        shards = [positions[s * size : (s + 1) * size] for s in range(per_class)]
        for s in range(left_over):
            shards[s].append(positions[len(positions) - left_over + s])
        stacks[c] = [shards[i] for i in torch.randperm(per_class, generator=generator).tolist()]
    clients = []
    for k in range(num_clients):
        hand = set(deck[k * n : (k + 1) * n])
        clients.append([i for c in sorted(hand) for i in stacks[c].pop()])
    return clients


@settings(max_examples=40)
@given(num_classes=st.integers(1, 6), per_class=st.integers(1, 8), n=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_shards_match_plain_python(num_classes: int, per_class: int, n: int, seed: int) -> None:
    shards = num_classes * per_class
    assume(shards % n == 0)
    num_clients = shards // n
    labels = torch.cat(
        [labels_of(per_class * num_classes * 5, num_classes, seed), torch.arange(num_classes).repeat(per_class)]
    )
    parts = LabelShards(n)(labels, num_clients, random_generator(seed))
    assert as_lists(parts) == slow_shards(labels.tolist(), num_clients, n, random_generator(seed))
    flat = flatten(as_lists(parts))
    assert len(flat) == len(set(flat))
    assert all(1 <= len(set(labels[part].tolist())) <= n for part in parts)


def test_a_label_that_is_dealt_twice_to_a_client_is_one_shard() -> None:
    labels = torch.arange(10).repeat_interleave(200)  # 20 shards of 10 samples per class
    parts = LabelShards(2)(labels, 100, random_generator(0))
    kinds = Counter((len(part), len(labels[part].unique())) for part in parts)
    assert set(kinds) == {(20, 2), (10, 1)}
    assert sum(len(part) for part in parts) == 2000 - 10 * kinds[(10, 1)]


def test_duplicate_deals_have_the_computed_frequency() -> None:
    labels = torch.arange(10).repeat_interleave(20)
    duplicates = [
        sum(len(part) == 1 for part in LabelShards(2)(labels, 100, random_generator(seed))) for seed in range(100)
    ]
    # P = 19/199 per client: mean 9.55 of 100 clients, standard error about 0.3.
    assert abs(np.mean(duplicates) - 1900 / 199) < 1.2


@pytest.mark.parametrize(
    ("labels", "num_clients", "message"),
    [
        (torch.arange(10).repeat(10), 7, "multiple of the 10 classes but got 2 \\* 7"),
        (torch.tensor([0] * 30 + [1]), 4, "at least 4 samples of every class.*class 1 has 1"),
    ],
)
def test_uneven_shards_are_refused(labels: Tensor, num_clients: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LabelShards(2)(labels, num_clients, random_generator(0))


# --- natural ids, matched test data ---


def test_natural_ids_are_the_clients_of_the_data() -> None:
    ids = torch.tensor([2, 0, 1, 2, 2, 0])
    assert as_lists(NaturalIds()(ids, 3, random_generator(0))) == [[1, 5], [2], [0, 3, 4]]
    with pytest.raises(ConfigurationError, match=r"client ids in \[0, 2\) but got 0 to 2"):
        NaturalIds()(ids, 2, random_generator(0))


@given(owners=st.lists(st.integers(-1, 5), min_size=1, max_size=60))
def test_positions_by_owner_matches_a_loop(owners: list[int]) -> None:
    expected = [[i for i, owner in enumerate(owners) if owner == k] for k in range(6)]
    assert as_lists(positions_by_owner(torch.tensor(owners), 6)) == expected


@given(
    total=st.integers(0, 200), weights=st.lists(st.integers(0, 30), min_size=1, max_size=20), seed=st.integers(0, 99)
)
def test_largest_remainder_equals_hamiltons_method(total: int, weights: list[int], seed: int) -> None:
    assume(sum(weights) > 0)
    shares = largest_remainder(total, torch.tensor(weights), random_generator(seed)).tolist()
    quotas = [Fraction(total * weight, sum(weights)) for weight in weights]
    assert sum(shares) == total
    raised = [quota % 1 for quota, share in zip(quotas, shares, strict=True) if share == quota // 1 + 1]
    kept = [quota % 1 for quota, share in zip(quotas, shares, strict=True) if share == quota // 1]
    assert len(raised) + len(kept) == len(weights)
    assert not raised or not kept or min(raised) >= max(kept)


def test_ties_of_remainders_do_not_favour_the_first_clients() -> None:
    totals = sum(largest_remainder(3, torch.ones(10).long(), random_generator(seed)) for seed in range(300))
    assert isinstance(totals, Tensor)
    assert totals.sum() == 900
    assert totals.min() > 60
    assert totals.max() < 125


@settings(max_examples=40)
@given(num_clients=st.integers(1, 12), num_classes=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_matched_partition_equals_brute_force(num_clients: int, num_classes: int, seed: int) -> None:
    train, test = labels_of(120, num_classes, seed), labels_of(70, num_classes + 1, seed + 1)
    parts = lenient(0.3)(train, num_clients, random_generator(seed))
    matched = as_lists(matched_partition(train, parts, test, random_generator(seed)))
    flat = flatten(matched)
    assert len(flat) == len(set(flat))
    # A class without training clients has no owner; every other sample has one.
    assert set(flat) == {i for i, label in enumerate(test.tolist()) if label in set(train.tolist())}
    for c in range(num_classes + 1):
        counts = [sum(int(train[i]) == c for i in part) for part in as_lists(parts)]
        got = [sum(int(test[i]) == c for i in part) for part in matched]
        for n_kc, m_kc in zip(counts, got, strict=True):
            quota = Fraction(sum(got) * n_kc, max(sum(counts), 1))
            assert m_kc in (quota // 1, quota // 1 + (quota % 1 > 0))


def test_matched_partition_is_exact_where_possible() -> None:
    train, test = torch.arange(2).repeat_interleave(6), torch.arange(2).repeat(4)
    parts = [torch.tensor([0, 1, 2, 6, 7, 8]), torch.tensor([3, 4, 5]), torch.tensor([9, 10, 11])]
    matched = matched_partition(train, parts, test, random_generator(0))
    assert class_counts(test, matched, 2).tolist() == [[2, 2], [2, 0], [0, 2]]
