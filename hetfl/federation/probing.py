"""Measurements for selection policies before a round: losses of clients, whose cost is charged, and predicted times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl import wire
from hetfl.accounting import Downloads, Forecast, Ledger
from hetfl.clustering import Clustering
from hetfl.federation.clients import Clients
from hetfl.federation.task_parts import TaskParts
from hetfl.finite import is_finite
from hetfl.fleet import LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.local import Result
from hetfl.local.jobs import gradients, losses
from hetfl.local.questions import answer
from hetfl.part import Part, only
from hetfl.pruning.gradients import ClientGradient, GradientRequest
from hetfl.question import Question
from hetfl.tree import leaves
from hetfl.types import Task


class RoundProbe:
    """Asks clients for the loss of the present global model; see :class:`hetfl.selection.Probe`.

    A client downloads its sub-model, passes its data through it once, and answers with one number. If it is selected,
    it does not download the model again. Answers are cached: a repeated question costs nothing.

    With several global models, a client answers for its cluster's model, or for all models if it is asked to.

    Args:
        probing: the clients, and the ledger that their answers are charged to.
        clients: ids of the reachable clients, ascending.
        round: the round.
    """

    def __init__(self, probing: Probing, clients: Sequence[int], round: int) -> None:
        self.probing, self.clients, self.round = probing, clients, round
        self.models, self._mark = probing.task_parts.models, probing.task_parts.models.mark
        self.told: dict[tuple[int, int, int | None], float] = {}  # by client, model and samples
        self.answered: dict[Question, dict[int, Tensor]] = {}  # by question and client
        self.informed: dict[tuple[int, int], Part] = {}  # by client and model, the part that the client has

    def task(self, client: int) -> Task:
        """Return the task that a client is asked about: its level's part of its cluster's model."""
        clustering = self.probing.clustering
        model = clustering.cluster_of(client)
        task = Task(
            client, self.level(client), self.round, self._mark, model=model, owner=clustering.owner(client, model)
        )
        return self.probing.task_parts.drawn(task)

    def level(self, client: int) -> str:
        """Return the name of a client's level in the round."""
        return self.probing.assignment.level(client, self.round)

    def model(self, client: int) -> int:
        """Return the number of a client's global model."""
        return self.probing.clustering.cluster_of(client)

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the mean loss of the present global model, at each client's level, on its own training data.

        A client that does not answer has a loss of 0: policies that prefer large losses rank it last.

        Args:
            clients: ids, each once.
            samples: of each client's data, drawn at random; None: all of it.
        """
        tasks = [self.task(client) for client in clients]
        self.ask(tasks, samples)
        return [self.told.get((task.client, task.model, samples), 0.0) for task in tasks]

    def cluster_losses(self, clients: Sequence[int]) -> list[list[float]]:
        """Return per client the mean loss of every cluster's model, at the client's level, on its own training data.

        A client that does not answer for a model has a loss of NaN there.

        Args:
            clients: ids, each once.
        """
        tasks = [self.task(client) for client in clients]
        # Model by model: the resident net is then loaded once per model, not once per client and model.
        models = range(len(self.models))
        owner = self.probing.clustering.owner
        self.ask([replace(t, model=model, owner=owner(t.client, model)) for model in models for t in tasks])
        return [[self.told.get((client, model, None), math.nan) for model in models] for client in clients]

    def ask(self, tasks: Sequence[Task], samples: int | None = None) -> None:
        """Ask clients for the losses of tasks without an answer yet; a client sends one number for all its models."""
        asked = [task for task in tasks if (task.client, task.model, samples) not in self.told]
        self.probing.ledger.begin_phase("probes")
        answered: set[int] = set()
        for result in self.probing.clients.run(partial(losses, samples=samples), asked):
            client, model = result.task.client, result.task.model
            self.told[client, model, samples] = result.report.loss
            self._charge(result, 0 if client in answered else wire.dense_size(1))
            answered.add(client)

    def gradients(self, clients: Sequence[int], request: GradientRequest) -> Iterator[ClientGradient]:
        """Yield the gradients of clients of the present global model, at the entries of each client's level.

        A client downloads its part, passes its data through it once, forward and backward, and sends what is asked for.

        Args:
            clients: ids, each once.
            request: which entries of the gradient a client sends.
        """
        ledger, trained = self.probing.ledger, self.models.trained
        ledger.begin_phase("probes")
        tasks = [self.task(client) for client in clients]
        if request.whole:
            tasks = [self.probing.task_parts.given(task, task.part.dense) for task in tasks]
        for result in self.probing.clients.run(partial(gradients, samples=request.samples), tasks):
            task, part = result.task, only(result.task.part, trained)
            update = request.chosen(result.vector, part, task)
            try:
                payload = wire.encode(update, round=self.round, client=task.owner)
            except ValueError as error:
                rank_zero_warn(f"Round {self.round + 1}: no gradient of client {ledger.called(task.client)}: {error}")
                continue
            expected = wire.Expected(self.round, task.owner, update.size, 0, dtype=self.models.like.dtype)
            sent = wire.decode(payload, expected)
            self._charge(result, len(payload), training=True)
            yield ClientGradient(task.client, result.report.passes, part.dense, sent)

    def answers(self, clients: Sequence[int], question: Question) -> dict[int, Tensor]:
        """Return by client the answers to a question, float64, shape (size,).

        A client that does not answer with as many finite numbers as the question has is left out. Answers are cached.

        Args:
            clients: ids, each once.
            question: about their data.
        """
        known, samples = self.answered.setdefault(question, {}), self.models.levels.samples
        entries = sum(leaf[0].numel() for leaf in leaves(samples))
        asked = [self.task(client) for client in clients if client not in known]
        if asked:
            self.probing.ledger.begin_phase("probes")
        for result in self.probing.clients.run(partial(answer, question=question), asked):
            client, numbers = result.task.client, result.vector.detach().cpu().double()
            flops = question.flops(result.report.samples, entries)
            self._charge(result, wire.dense_size(question.size), question.backward, question.uses_model, flops)
            if numbers.shape == (question.size,) and is_finite(numbers):
                known[client] = numbers
            else:
                called, kind = self.probing.ledger.called(client), type(question).__name__
                rank_zero_warn(f"Round {self.round + 1}: no answer of client {called} to {kind}: not finite numbers")
        return {client: known[client] for client in clients if client in known}

    def _charge(
        self, result: Result, up_bytes: int, training: bool = False, model: bool = True, flops: float = 0.0
    ) -> None:
        """Charge a client for an answer.

        Args:
            result: with the samples that were passed through the net.
            up_bytes: length of the answer.
            training: whether passes include the backward pass.
            model: whether the client needs the model, which it then has for the rest of the round.
            flops: beside those of the net.
        """
        task, down_bytes = result.task, 0
        if model:
            known = self.informed.get(task.key)
            down_bytes = 0 if known is not None and known.covers(task.part) else self._bytes(task)
        work = self.models.levels.work(task, down_bytes, result.report.passes, up_bytes, training)
        self.probing.ledger.charge(task.client, self.round, replace(work, flops=work.flops + flops))
        if model:
            self.informed[task.key] = task.part
            self.probing.downloads.note(task)

    def _bytes(self, task: Task) -> int:
        has_one = any((task.client, model) in self.informed for model in range(len(self.models)))
        return self.probing.downloads.bytes(task, self.models.shared if has_one else frozenset())

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return the predicted seconds of each client's round: download of the model, E epochs, upload of its update.

        The predicted size of an update is that of a dense one times the last round's ratio of sent to dense bytes. No
        client is asked. The time of earlier probes in this round is left out.

        Args:
            clients: ids.
        """
        ids_S, probing = np.asarray(clients, np.int64), self.probing
        positions_S = probing.assignment.positions(self.round)[ids_S]
        predicted_S = probing.forecast.seconds(ids_S, positions_S, self.round, probing.ledger.up_share)
        return [float(each) for each in predicted_S]

    def initial_loss(self, task: Task) -> float | None:
        """Return the loss of a task's model on all of its client's data; None if the client was not asked for it."""
        return self.told.get((task.client, task.model, None))

    def has_model(self, task: Task) -> bool:
        """Return whether a task's client has already downloaded the task's model."""
        return (task.client, task.model) in self.informed


class Probing:
    """Makes the probes of rounds and of evaluations.

    Args:
        task_parts: positions of sub-models in the global models.
        assignment: the level of every client.
        clustering: the model of every client.
        clients: the clients that are asked.
        ledger: counts the costs.
        downloads: records what clients have downloaded.
        forecast: predicts seconds.
    """

    def __init__(
        self,
        task_parts: TaskParts,
        assignment: LevelAssignment,
        clustering: Clustering,
        clients: Clients,
        ledger: Ledger,
        downloads: Downloads,
        forecast: Forecast,
    ) -> None:
        self.task_parts, self.assignment, self.clustering = task_parts, assignment, clustering
        self.clients, self.ledger, self.downloads, self.forecast = clients, ledger, downloads, forecast

    def of_round(self, round: int) -> RoundProbe:
        """Return the probe of a round that begins; the simulated clock waits until a client is reachable."""
        reachable = self.ledger.wait(round)
        self.ledger.reachable = len(reachable)
        return self.of_clients(reachable, round)

    def of_clients(self, reachable: IntArray, round: int) -> RoundProbe:
        """Return a probe of reachable clients about the present models."""
        everyone = len(reachable) == self.assignment.num_clients
        return RoundProbe(self, range(len(reachable)) if everyone else reachable.tolist(), round)
