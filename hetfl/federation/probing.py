"""What a selection policy learns of clients before it chooses: losses, at their price, and predicted seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from hetfl import wire
from hetfl.federation.clients import Clients
from hetfl.federation.ledger import Ledger
from hetfl.fleet import Work
from hetfl.local import LocalTask
from hetfl.local.jobs import losses


class RoundProbe:
    """Asks clients for the loss of the present global model; see :class:`hetfl.selection.Probe`.

    A client is sent its sub-model, passes its data through it once, and answers with one number. Whoever is then
    selected has the model already. Answers are kept: asking twice costs once.

    If there are several global models, a client's is that of its cluster, unless it is asked for the losses of all.

    Args:
        clients: ids of those within reach, ascending.
        task: returns a client's task of the round, of which level, round and model are used.
        runner: has clients do it.
        model_bytes: by level, the bytes of a sub-model on its way to a client.
        forward_flops: by level, the FLOPs of a forward pass of one sample.
        ledger: takes the costs.
        forecast: predicts the seconds of clients' rounds.
        clusters: number of global models.
        further_bytes: by level, the bytes of a model beside another one: what they share travels once.
    """

    def __init__(
        self,
        clients: Sequence[int],
        task: Callable[[int], LocalTask],
        runner: Clients,
        model_bytes: Mapping[str, int],
        forward_flops: Mapping[str, float],
        ledger: Ledger,
        forecast: Callable[[Sequence[int]], list[float]],
        clusters: int = 1,
        further_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self.clients = clients
        self.task, self.runner, self.ledger, self.forecast = task, runner, ledger, forecast
        self.model_bytes, self.forward_flops = model_bytes, forward_flops
        self.clusters, self.further_bytes = clusters, model_bytes if further_bytes is None else further_bytes
        self.answers: dict[tuple[int, int, int | None], float] = {}  # by client, cluster and samples
        self.informed: set[tuple[int, int]] = set()  # clients, and of which cluster's model

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the mean loss of the present global model, at each client's level, on its own training data.

        A client that does not answer counts with a loss of 0, so that no policy is keen on it.

        Args:
            clients: ids, each once.
            samples: of each client's data, drawn at random; None: all of it.
        """
        tasks = [self.task(client) for client in clients]
        self._ask(tasks, samples)
        return [self.answers.get((task.client, task.cluster, samples), 0.0) for task in tasks]

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        """Return per client the mean loss of every cluster's model, at the client's level, on its own training data.

        Of a model that a client gave no answer on it is NaN.

        Args:
            clients: ids, each once.
        """
        tasks = [self.task(client) for client in clients]
        # Cluster by cluster: the resident net then changes its model k times, not once a client.
        self._ask([replace(task, cluster=cluster) for cluster in range(self.clusters) for task in tasks], None)
        return [
            [self.answers.get((client, cluster, None), math.nan) for cluster in range(self.clusters)]
            for client in clients
        ]

    def _ask(self, tasks: Sequence[LocalTask], samples: int | None) -> None:
        """Have tasks that were not answered yet answered; a client sends one number, however many models it tries."""
        asked = [task for task in tasks if (task.client, task.cluster, samples) not in self.answers]
        self.ledger.begin_phase()
        answered: set[int] = set()
        for result in self.runner.run(partial(losses, samples=samples), asked):
            client, level, cluster = result.task.client, result.task.level, result.task.cluster
            self.answers[client, cluster, samples] = result.loss
            down_bytes = 0 if (client, cluster) in self.informed else self._bytes(client, level)
            flops = self.forward_flops[level] * result.num_passes
            up_bytes = 0 if client in answered else wire.dense_size(1)
            self.ledger.charge(client, result.task.round, Work(down_bytes, flops, up_bytes))
            self.informed.add((client, cluster))
            answered.add(client)

    def _bytes(self, client: int, level: str) -> int:
        has_one = any((client, cluster) in self.informed for cluster in range(self.clusters))
        return self.further_bytes[level] if has_one else self.model_bytes[level]

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return how long each client's coming round will take: the model down, E epochs, and its update up.

        An update is taken to be as much smaller than a dense one as the last round's were. Nobody is asked, and what
        was asked before does not count.

        Args:
            clients: ids.
        """
        return self.forecast(clients)

    def initial_loss(self, task: LocalTask) -> float | None:
        """Return the loss, over all of a client's data, of the model of its task; None if it was not asked for."""
        return self.answers.get((task.client, task.cluster, None))

    def has_model(self, task: LocalTask) -> bool:
        """Return whether a task's client was sent the model of the task before."""
        return (task.client, task.cluster) in self.informed
