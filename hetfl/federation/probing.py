"""What a selection policy learns of clients before it chooses: losses, at their price, and predicted seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from hetfl import wire
from hetfl.federation.ledger import Ledger
from hetfl.fleet import Work
from hetfl.local import Executor, LocalTask
from hetfl.local.jobs import losses


class RoundProbe:
    """Asks clients for the loss of the present global model; see :class:`hetfl.selection.Probe`.

    A client is sent its sub-model, passes its data through it once, and answers with one number. Whoever is then
    selected has the model already. Answers are kept: asking twice costs once.

    Args:
        clients: ids of those within reach, ascending.
        task: returns a client's task of the round, of which level, round and model are used.
        executor: runs the clients.
        model_bytes: by level, the bytes of a sub-model on its way to a client.
        forward_flops: by level, the FLOPs of a forward pass of one sample.
        ledger: takes the costs.
        forecast: predicts the seconds of clients' rounds.
    """

    def __init__(
        self,
        clients: Sequence[int],
        task: Callable[[int], LocalTask],
        executor: Executor,
        model_bytes: Mapping[str, int],
        forward_flops: Mapping[str, float],
        ledger: Ledger,
        forecast: Callable[[Sequence[int]], list[float]],
    ) -> None:
        self.clients = clients
        self.task, self.executor, self.ledger, self.forecast = task, executor, ledger, forecast
        self.model_bytes, self.forward_flops = model_bytes, forward_flops
        self.answers: dict[tuple[int, int | None], float] = {}  # by client and samples
        self.informed: set[int] = set()

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the mean loss of the present global model, at each client's level, on its own training data.

        Args:
            clients: ids, each once.
            samples: of each client's data, drawn at random; None: all of it.
        """
        asked = [self.task(client) for client in clients if (client, samples) not in self.answers]
        self.ledger.begin_phase()
        for result in self.executor.run(partial(losses, samples=samples), asked):
            client, level = result.task.client, result.task.level
            self.answers[client, samples] = result.loss
            down_bytes = 0 if client in self.informed else self.model_bytes[level]
            flops = self.forward_flops[level] * result.num_passes
            self.ledger.charge(client, result.task.round, Work(down_bytes, flops, wire.dense_size(1)))
            self.informed.add(client)
        return [self.answers[client, samples] for client in clients]

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return how long each client's coming round will take: the model down, E epochs, and its update up.

        An update is taken to be as much smaller than a dense one as the last round's were. Nobody is asked, and what
        was asked before does not count.

        Args:
            clients: ids.
        """
        return self.forecast(clients)

    def initial_loss(self, client: int) -> float | None:
        """Return a client's loss over all of its data; None if it was not asked for."""
        return self.answers.get((client, None))
