"""The server's side of clients on Flower nodes: it sends orders to nodes, and checks their answers."""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

from hetfl import wire
from hetfl.defence.ranges import losses_ranges, pass_ranges, residual_ranges, violation
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.federation.clients import Clients
from hetfl.fleet.numbers import IntArray
from hetfl.flower.job_names import named
from hetfl.flower.letters import Failure, Sent
from hetfl.flower.limits import Needs, report_memory
from hetfl.flower.messages import ClientAnswer, JobName, Order, Request
from hetfl.flower.nodes import Nodes
from hetfl.flower.orders import orders_of
from hetfl.flower.patience import Patience
from hetfl.flower.refusals import check_federation
from hetfl.flower.settings import shared_settings
from hetfl.flower.state_owners import Participant
from hetfl.flower.states import NOTHING, STATE, StateBook
from hetfl.local import Result
from hetfl.local.executor import Job
from hetfl.models.static_batch_norm import static_layers
from hetfl.packing import pack
from hetfl.printable import printable
from hetfl.schedule import Reply
from hetfl.types import Report, Task
from hetfl.updates import Update


class FlowerClients(Clients):
    """Clients on nodes of Flower.

    Every report is checked against its order: the nonce, the client, and every number's range
    (:mod:`hetfl.defence.ranges`). The wire format checks the round, the client and every length. A report that fails a
    check is refused with a warning that names the client, and the round goes on.

    Args:
        module: the server's federated module.
        nodes: the nodes.
        patience: how long a round waits.
    """

    known = False
    arrives = True

    def __init__(self, module: FederatedModule, nodes: Nodes, patience: Patience | None = None) -> None:
        self._module, self._nodes, self._patience = module, nodes, patience or Patience()
        self._book = StateBook()
        self._federation = secrets.token_hex(16)
        self._answers: dict[tuple[int, int], ClientAnswer] = {}
        self._asked: dict[int, Participant] = {}  # the node that was asked last for a client, by client
        self._waiting: dict[str, Sent] = {}  # requests of single clients whose answers are not awaited together
        self._channels: dict[str, list[int]] = {}
        self._gathered = self._needs_reported = False

    def begin(self) -> None:
        """Prepare training.

        Raises:
            ConfigurationError: the method needs what nodes do not do; see :func:`check_federation`.
        """
        check_federation(self._module)

    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:  # noqa: D102
        self._begin_round(tasks)
        answers = self._ask("train", tasks)
        for number, task in enumerate(tasks):
            yield self._reply(task, answers[number])

    def post(self, tasks: Sequence[Task]) -> None:  # noqa: D102
        self._begin_round(tasks)
        self._find_nodes()
        compressor, deadline = pack(self._module.uplink.compressor.state_dict()), self._patience.of("train")
        for task, order in zip(tasks, orders_of(self._module, self._book, tasks), strict=True):
            if (node := self._serving(task.client)) is not None:
                self._asked[task.client] = self._nodes.participant(node)
                self._waiting |= self._nodes.send({node: self._request("train", [order], compressor)}, deadline)

    def arrived(self, tasks: Sequence[Task]) -> Iterator[Reply]:  # noqa: D102
        answers = {letter.clients[0]: answer for letter, answer in self._nodes.collect(self._waiting)}
        awaited = {client for letter in self._waiting.values() for client in letter.clients}
        for task in tasks:
            if task.client in answers:
                answer = answers[task.client]
                yield self._reply(task, answer if isinstance(answer, Failure) else answer.reports[0])
            elif task.client not in awaited:
                yield self._reply(task, Failure("no node that serves it is there, or the server began anew"))

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:  # noqa: D102
        name, samples = named(job)
        answers = self._ask(name, tasks, samples)
        for number, task in enumerate(tasks):
            result, client = self._result(name, task, answers[number], samples), self._module.ledger.called(task.client)
            if not isinstance(result, Failure):
                yield result
            elif result.refused:
                self._module.ledger.refuse()
                rank_zero_warn(f"Round {task.round + 1}: {name} of client {client} refused: {result.reason}")
            else:
                rank_zero_warn(f"Round {task.round + 1}: no {name} of client {client}: {result.reason}")

    def within_reach(self, clients: IntArray) -> IntArray:
        """Return the clients among ``clients`` that have a node; all of them if none has, to report the failures."""
        self._find_nodes()
        served = [client for client in clients.tolist() if self._serving(client) is not None]
        return np.array(served, dtype=clients.dtype) if served else clients

    def take(self, reply: Reply, update: Update) -> None:  # noqa: D102
        task = reply.task
        answer = self._answers.pop(task.key)
        self._book.take(task.client, answer.state)
        self._nodes.owners.settle(task.client, self._asked[task.client])
        if self._module.uplink.enabled:
            self._module.uplink.note(task.client, task.round, answer.squared_norm)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"federation": self._federation, **self._book.state_dict(), **self._nodes.owners.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned.

        Raises:
            ConfigurationError: the checkpoint is of a run whose clients were in the server's process.
        """
        if "federation" not in state:
            raise ConfigurationError("Expected a checkpoint of a run on Flower but got one with residuals of its own")
        self._federation = state["federation"]
        self._book.load_state_dict(state)
        self._nodes.owners.load_state_dict(state)

    def checkpointed(self) -> None:  # noqa: D102
        self._book.checkpointed()

    def _find_nodes(self) -> None:
        """Update the list of nodes; the first time, wait for them."""
        if not self._gathered:
            everyone = frozenset(range(self._module.data.num_clients))
            self._nodes.gather(shared_settings(self._module), everyone, self._entries, self._patience)
            self._gathered = True
        self._nodes.wait(max(self._patience.start, self._patience.deadline))

    def _report_needs(self, tasks: Sequence[Task]) -> None:
        """Report before the first round what it needs."""
        if self._needs_reported:
            return
        self._needs_reported = True
        needs, report = Needs.of(self._module, tasks), self._nodes.register.report
        report("needs", needs.describe(self._patience.of("train")))
        report_memory(report, needs.memory)

    def _serving(self, client: int) -> int | None:
        """Return the node that is asked for a client; only its own node has its state."""
        return self._nodes.serving(client, self._book.present(client) != NOTHING)

    def _begin_round(self, tasks: Sequence[Task]) -> None:
        self._count_refused()
        rounds = max(0, self._module.trainer.max_epochs or 0)
        self._nodes.register.begin_round(self._module.models.version + 1, rounds)
        self._report_needs(tasks)

    def _count_refused(self) -> None:
        """Count the answers of the round before that the server did not accept."""
        for answer in self._answers.values():
            self._nodes.register.answer_refused(self._asked[answer.client])
        self._answers = {}

    def _ask(self, job: JobName, tasks: Sequence[Task], samples: int | None = None) -> list[ClientAnswer | Failure]:
        """Return the answer to each task, or a failure."""
        self._find_nodes()
        of_node: defaultdict[int, list[int]] = defaultdict(list)
        for number, task in enumerate(tasks):
            if (node := self._serving(task.client)) is not None:
                of_node[node].append(number)
                self._asked[task.client] = self._nodes.participant(node)
        orders = orders_of(self._module, self._book, tasks)
        compressor = pack(self._module.uplink.compressor.state_dict())
        requests = {
            node: self._request(job, [orders[n] for n in numbers], compressor, samples)
            for node, numbers in of_node.items()
        }
        wanted = math.ceil(self._patience.enough * sum(map(len, of_node.values())))
        answers: list[ClientAnswer | Failure] = [Failure("no node that serves it is there") for _ in tasks]
        for node, answer in self._nodes.ask(requests, self._patience.of(job), wanted).items():
            for position, number in enumerate(of_node[node]):
                answers[number] = answer if isinstance(answer, Failure) else answer.reports[position]
        return answers

    def _request(self, job: JobName, orders: list[Order], compressor: bytes, samples: int | None = None) -> Request:
        return Request(job, secrets.token_hex(16), self._federation, samples, compressor, orders=orders)

    def _reply(self, task: Task, answer: ClientAnswer | Failure) -> Reply:
        """Return the reply for an answer to training."""
        refusal = self._refusal(task, answer)
        if isinstance(answer, ClientAnswer) and answer.status == "lost":
            self._book.take(task.client, NOTHING)
            asked = self._asked[task.client]
            self._nodes.owners.settle(task.client, asked)
            self._nodes.register.state_lost(asked, task.round + 1, task.client, answer.reason)
            return Reply(task, lost=f"{answer.reason}: it begins anew next time")
        if isinstance(answer, Failure) and not answer.refused:
            return Reply(task, lost=answer.reason, late=answer.late)
        if isinstance(answer, Failure) or refusal:
            return Reply(task, Report(task.client, task.level, 0, 0.0), refusal=refusal)
        if answer.status == "failed":
            return Reply(task, lost=answer.reason)
        self._answers[task.key] = answer
        refused = (answer.reason or "the node gave no reason") if answer.status == "refused" else ""
        return Reply(task, answer.report(task), answer.payload, refused)

    def _refusal(self, task: Task, report: ClientAnswer | Failure) -> str:
        """Return why a report on training must be refused; empty if it is valid, or if the client could not train."""
        if isinstance(report, Failure):
            return report.reason
        if report.status != "done":
            return ""
        if not STATE.fullmatch(report.state):
            return f"Expected the name of a state but got {printable(report.state, 40)}"
        return violation(residual_ranges(self._entries, self._module.uplink.enabled), report)

    @property
    def _entries(self) -> int:
        """Entries D of the global model."""
        return sum(tensor.numel() for tensor in self._module.models.tensors[0].values())

    def _result(
        self, job: JobName, task: Task, report: ClientAnswer | Failure, samples: int | None
    ) -> Result | Failure:
        """Return the checked result of a job other than training."""
        if isinstance(report, Failure):
            return report
        if report.status != "done":
            return Failure(report.reason)
        size = self._module.data.sizes[task.client]
        ranges = pass_ranges(size, samples)
        if job == "losses":
            ranges = {**ranges, **losses_ranges(self._module.aggregator.first.asks_losses)}
        if wrong := violation(ranges, report):
            return Failure(wrong, refused=True)
        if job == "losses":
            return Result(task, report.report(task), torch.empty(0))
        channels = self._channels_of(task.level)
        dtype = self._module.models.like.dtype
        expected = wire.Expected(task.round, task.client, 2 * sum(channels) + len(channels), dtype=dtype)
        try:
            sums = wire.decode(report.payload, expected).to_dense()
        except wire.MalformedPayload as error:
            return Failure(str(error), refused=True)
        return Result(task, report.report(task), sums)

    def _channels_of(self, level: str) -> list[int]:
        """Return the widths of a level's static norm layers."""
        if level not in self._channels:
            layers = static_layers(self._module.levels.build(level))
            self._channels[level] = [layer.weight.numel() for layer in layers.values()]
        return self._channels[level]
