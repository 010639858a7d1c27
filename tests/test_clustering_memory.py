"""State that clustering policies keep over rounds, and when they reset it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from hetfl.clustering import IFCA, ClusteredFL, NewModel
from hetfl.piece import Facts
from hetfl.types import Report
from hetfl.updates import DenseUpdate


class OneBest:
    """A probe in which one of three clusters has the least loss for all clients."""

    def __init__(self, best: int) -> None:
        self.best = best

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        return [[float(cluster != self.best) for cluster in range(3)] for _ in clients]


@pytest.mark.filterwarnings("ignore:IFCA")
@pytest.mark.parametrize(
    ("winners", "replaced"),
    [
        ([1, 1, 1], [2]),
        ([1, 1, 2, 2, 2], [4]),
        ([1, 1, 2, 1, 1, 0], []),
        ([2, 0, 0, 0, 0, 0, 0, 1, 1, 1], [3, 6, 9]),
    ],
)
def test_the_count_of_rounds_with_one_winner_restarts_with_another_winner(
    winners: list[int], replaced: list[int]
) -> None:
    policy = IFCA(3, restarts=9, jitter=None)
    actual: dict[int, list[NewModel]] = {}
    policy.setup(Facts([1] * 6))
    for round, winner in enumerate(winners):
        policy.assign(round, range(6), OneBest(winner))
        if models := policy.new_models(round, 3):
            actual[round] = models
    others = {round: sorted({0, 1, 2} - {winners[round]}) for round in replaced}
    assert actual == {round: [NewModel(cluster, None) for cluster in clusters] for round, clusters in others.items()}


def send_updates(policy: ClusteredFL, round: int, degrees: dict[int, float]) -> list[NewModel]:
    """Send updates with given directions in degrees; return the new models of the round."""
    policy.assign(round, list(degrees), OneBest(0))
    for client, angle in degrees.items():
        values = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
        report = Report(client, "a", 10, 1.0, 0.0, model=policy.cluster_of(client))
        policy.observe(DenseUpdate(values), {"w": (slice(0, 2),)}, report)
    return policy.new_models(round, max(policy.assigned) + 1)


def norm_columns(policy: ClusteredFL) -> set[str]:
    return {name for name in policy.columns() if "norm" in name}


def test_new_clusters_of_a_split_are_judged_by_later_updates_only() -> None:
    """Updates that members sent for their common model neither count in a new cluster's norms nor split it."""
    policy = ClusteredFL(10.0, 0.1, min_rounds=0)
    policy.setup(Facts([1] * 6))
    assert send_updates(policy, 0, {0: 0, 1: 10, 2: 20, 3: 120, 4: 130, 5: 140}) == [NewModel(1, 0)]
    assert policy.assigned == [0, 0, 0, 1, 1, 1]
    assert send_updates(policy, 1, {0: 0, 3: 120}) == []
    assert norm_columns(policy) == set()
    assert send_updates(policy, 2, {1: 90, 4: 120}) == []
    assert send_updates(policy, 3, {2: 100}) == [NewModel(2, 0)]
    assert norm_columns(policy) == {"cluster/mean_norm/0", "cluster/max_norm/0"}
    assert policy.assigned == [0, 2, 2, 1, 1, 1]


def test_the_cluster_tree_records_the_largest_similarity_between_the_parts() -> None:
    """The nearest members of different parts are 90 degrees apart, the farthest 130; neighbours in a part 10 and 30."""
    policy = ClusteredFL(10.0, 0.1, min_rounds=0)
    policy.setup(Facts([1] * 4))
    send_updates(policy, 0, {0: 0, 1: 10, 2: 100, 3: 130})
    (split,) = policy.tree
    assert (split["stay"], split["leave"]) == ([0, 1], [2, 3])
    assert split["similarity"] == pytest.approx(0.0, abs=1e-12)
    columns, rows = policy.tables()["cluster_tree"]
    assert dict(zip(columns, rows[0], strict=True))["similarity"] == split["similarity"]
