"""Clients that do not answer requests for losses, as can happen with clients on other machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetfl import FederatedModule
from hetfl.aggregators import HolderMean, QFedAvg
from hetfl.clustering import IFCA
from hetfl.federation.clients import OwnClients
from hetfl.local import Result
from hetfl.local.executor import Job
from hetfl.piece import Facts
from hetfl.schedule import Reply
from hetfl.selection import PowerOfChoice
from hetfl.types import Task
from tests.test_cluster_runs import Fit, grouped, module, rows


class Silent(OwnClients):
    """Client 3 never answers; client 5 does not answer for the second model."""

    def __init__(self, module: FederatedModule) -> None:
        assert isinstance(module.clients, OwnClients)
        super().__init__(module.executor, module.clients.side)
        self.trained: list[list[tuple[int, int]]] = []

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:
        for result in super().run(job, tasks):
            if result.task.client != 3 and result.task.key != (5, 1):
                yield result

    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:
        self.trained.append([task.key for task in tasks])
        return super().train(tasks)


def silenced(module: FederatedModule) -> Silent:
    module.clients = clients = Silent(module)
    return clients


def test_a_client_that_does_not_answer_does_not_choose_a_model(fit: Fit) -> None:
    tested = module(IFCA(2))
    clients = silenced(tested)
    tested.clustering.setup(Facts([1] * 8))
    tested.clustering.put(0, 3, 1)
    fit(tested, grouped(), rounds=2, limit_val_batches=0)
    for trained in clients.trained:
        assert dict(trained)[3] == 1
        assert dict(trained)[5] == 0


def test_q_fedavg_drops_a_client_without_a_loss(fit: Fit) -> None:
    tested = module(None, aggregator=QFedAvg(1.0))
    clients = silenced(tested)
    table = rows(fit(tested, grouped(), rounds=2, limit_val_batches=0))
    assert [sorted(k for k, _ in trained) for trained in clients.trained] == [[0, 1, 2, 4, 5, 6, 7]] * 2
    assert table["sim/failed"].tolist() == [1.0, 1.0]


def test_power_of_choice_does_not_prefer_a_client_without_a_loss(fit: Fit) -> None:
    tested = module(None, selection=PowerOfChoice(8, 7), aggregator=HolderMean())
    clients = silenced(tested)
    fit(tested, grouped(), rounds=1, limit_val_batches=0)
    assert sorted(k for k, _ in clients.trained[0]) == [0, 1, 2, 4, 5, 6, 7]
