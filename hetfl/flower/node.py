"""A node: it carries out the server's orders for its clients, with the same components as a simulation."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hetfl import wire
from hetfl.data import FederatedDataModule
from hetfl.downlink import receiving
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.federation import FederatedModule
from hetfl.federation.clients import ClientSide
from hetfl.federation.facts import facts_of
from hetfl.flower.events import Reporter, silent
from hetfl.flower.messages import Answer, ClientAnswer, Order, Request
from hetfl.flower.settings import disagreement, shared_settings
from hetfl.flower.standing import ranges
from hetfl.flower.states import ClientState, ClientStates, StateLost
from hetfl.flower.surroundings import surroundings
from hetfl.local.bench import Bench
from hetfl.local.jobs import losses, statistics, train
from hetfl.local.resident import ResidentNet
from hetfl.packing import unpack
from hetfl.part import Part
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import SHARED, Task
from hetfl.updates import DenseUpdate

RESIDUAL, MEMORY, PERSONAL = "residual/", "memory/", "personal/"
"""Prefixes of the names of a state's blocks."""


class OrderBench(Bench):
    """Resident nets that are loaded with the sub-model in an order; a node has no global model.

    Attributes:
        order: the order.
        preinstalled: whether orders leave out the frozen parameters, because nodes have them.
        unfrozen: returns a part without frozen parameters.
    """

    order: Order
    preinstalled: bool
    unfrozen: Callable[[Part], Part]

    def resident(self, task: Task) -> ResidentNet:
        """Return the net of the order's level; its anchor has the values of the order's sub-model.

        Raises:
            MalformedPayload: the sub-model is not of the order's level.
        """
        resident, order = self._of_level(task.level), self.order.task
        if order.received is not None:
            resident.loaded = None  # orders have no version of the model by which other values could be told
            resident.receive(order.received, order.part, (order.model, order.version))
            resident.train_only(self.trained(order))
            return resident
        sent = self.unfrozen(order.part) if self.preinstalled else order.part
        expected = wire.Expected(order.round, order.model, sent.size, dtype=resident.anchor_D.dtype)
        values_D = sent.spread(wire.decode(self.order.model, expected).to_dense())
        resident.load(values_D, order.part, self.models[order.model] if self.preinstalled else None)
        resident.train_only(self.trained(order))
        return resident


class Node:
    """Answers requests.

    Args:
        module: the federated module, set up with its data by a trainer that runs nothing.
        data: the data; only the samples of this node's clients are used.
        clients: ids of the clients that the node serves.
        states: the store of their states.
        name: of the node, for the server's operator; empty: that of the machine.
        report: takes events for the node's operator.

    Raises:
        ConfigurationError: there are no clients, or a client is not in the data.
    """

    def __init__(
        self,
        module: FederatedModule,
        data: FederatedDataModule,
        clients: frozenset[int],
        states: ClientStates,
        name: str = "",
        report: Reporter = silent,
    ) -> None:
        if not clients or min(clients) < 0 or max(clients) >= data.num_clients:
            raise ConfigurationError(
                f"Expected clients from 0 to {data.num_clients - 1} for a node but got {sorted(clients)}"
            )
        self.module, self.data, self.clients, self.states = module, data, clients, states
        self.name, self.report = name or platform.node(), report
        self.settings = shared_settings(module)
        module.uplink.compressor.setup(facts_of(module, data, rounds=None))  # the schedule is the server's
        module.uplink.residuals = MemoryStore()
        module.personal.store = MemoryStore()
        if module.penalty.memories is not None:
            module.penalty.memories = MemoryStore()
        self.bench = OrderBench(module.hosting.problem, data, module.models.tensors)
        self.bench.preinstalled, self.bench.unfrozen = module.downloads.preinstalled, module.models.unfrozen
        self.side = ClientSide(
            module.seed,
            module.task_parts,
            module.uplink,
            module.penalty,
            module.fleet,
            module.personal,
            module.hooks,
        )
        self._dtype = module.models.like.dtype

    def answer(self, request: Request) -> Answer:
        """Return the answer to a request; an error of one client is in that client's report."""
        if request.job in ("hello", "note"):
            return self._hello(request) if request.job == "hello" else self._hear(request)
        begun = time.monotonic()
        self.module.uplink.compressor.load_state_dict(unpack(request.compressor))
        with torch.inference_mode(False), torch.enable_grad(), self.bench.problem.precision_context():
            answer = Answer(request.nonce, reports=[self._report(request, order) for order in request.orders])
        if request.job == "train":
            self._tell(request, answer, time.monotonic() - begun)
        return answer

    def _hello(self, request: Request) -> Answer:
        trouble, clients = disagreement(request.settings, self.settings), sorted(self.clients)
        if trouble:
            self.report("refused", f"this node cannot take part: {trouble}", self.name)
        else:
            self.report("joined", f"the server has the same settings; clients {ranges(clients)}", self.name)
        here = surroundings(self.module.device)
        return Answer(request.nonce, clients, trouble, (), self.name, self.states.identity(), here)

    def _hear(self, request: Request) -> Answer:
        self.report("note", request.note, self.name)
        return Answer(request.nonce)

    def _tell(self, request: Request, answer: Answer, seconds: float) -> None:
        """Report what the clients have done."""
        round = request.orders[0].task.round + 1 if request.orders else 0
        done = [report.client for report in answer.reports if report.status == "done"]
        up = sum(len(report.payload) for report in answer.reports)
        if done:
            text = f"round {round}: clients {ranges(done)} in {seconds:.1f} s, {up:,} bytes to send"
            self.report("served", text, self.name, round=round, seconds=seconds, up_bytes=up)
        for report in answer.reports:
            if report.status != "done":
                kind = "state lost" if report.status == "lost" else "no update"
                self.report(kind, f"round {round}: client {report.client}: {report.reason}", self.name, round=round)

    @property
    def _memories(self) -> ClientStore | None:
        return self.module.penalty.memories

    def _report(self, request: Request, order: Order) -> ClientAnswer:
        client = order.task.client
        try:
            if client not in self.clients:
                raise ConfigurationError(f"Expected a client among {sorted(self.clients)} but got {client}")
            given = replace(order, task=self._with_part(order))
            try:
                return self._train(request, given) if request.job == "train" else self._other(request, given)
            finally:
                self._restore(client, ClientState())  # the disk has it; each would take as much memory as the model
        except StateLost as lost:
            return ClientAnswer(client, "lost", str(lost))
        except RefusedUpdate as refused:
            return ClientAnswer(client, "refused", str(refused))
        except Exception as error:  # an error of one client must not stop the others
            traceback.print_exc()
            return ClientAnswer(client, "failed", f"{type(error).__name__}: {error}")

    def _with_part(self, order: Order) -> Task:
        """Return an order's task with the part and the coded values in the order; a node calls no part rule."""
        task, broadcast = order.task, self.module.downlink
        task = self.module.task_parts.given(task, self._part(order.part, task.level))
        if not broadcast.codes:
            return task
        if order.source_level:
            task = replace(task, source=self._part(order.source, order.source_level))
        messages = {SHARED: order.shared, task.model: order.model}
        return receiving(task, broadcast.read(task, task.source or task.part, messages))

    def _part(self, data: bytes, level: str) -> Part:
        levels = self.module.levels
        if level not in levels:
            raise ConfigurationError(f"Expected a level among {list(levels)} but got {level}")
        return wire.decode_part(data, levels.indices[level], levels.whole)

    def _train(self, request: Request, order: Order) -> ClientAnswer:
        """Train, encode, and write the state that becomes the client's if the server accepts the update."""
        module, task, federation = self.module, order.task, request.federation
        before = self.states.load(federation, task.client, order.state)
        self.states.prune(federation, task.client, {order.state, *order.keep})
        self._restore(task.client, before)
        self.bench.order = order
        result = train(self.bench, self.side.recall(task))
        reply = self.side.send(result, lambda task: self.bench.resident(task).anchor_D)
        if reply.prepared is None or reply.report is None:
            raise RefusedUpdate(reply.refusal)
        layout = module.task_parts.compressed(task).held
        expected = wire.Expected(
            task.round, task.client, layout.size, task.sent.size - layout.size, dtype=self._dtype, layout=layout
        )
        self.side.keep(reply, wire.decode(reply.payload, expected))
        state = self.states.save(federation, task.client, self._state(task))
        return ClientAnswer(
            task.client,
            loss=reply.report.loss,
            samples=reply.report.samples,
            passes=reply.report.passes,
            steps=reply.report.steps,
            state=state,
            squared_norm=module.uplink.squared_norm(task.client),
            payload=reply.payload,
            extras=reply.report.extras,
        )

    def _known(self, federation: str, order: Order) -> ClientState:
        """Return a client's state; one without contents if it is lost, which the next order to train finds."""
        try:
            return self.states.load(federation, order.task.client, order.state)
        except StateLost:
            return ClientState()

    def _restore(self, client: int, state: ClientState) -> None:
        """Load a state into the stores of error feedback, the penalty and the personal tensors."""
        self.module.uplink.restore(client, _part(state.blocks, RESIDUAL), state.round)
        if (memories := self._memories) is not None:
            memories.save(client, _part(state.blocks, MEMORY), state.round)
        self.module.personal.store.save(client, _part(state.blocks, PERSONAL), state.round)

    def _state(self, task: Task) -> ClientState:
        """Return a client's present state: its residual, the penalty's memory, and its personal tensors."""
        blocks = {RESIDUAL + name: block for name, block in self.module.uplink.residuals.load(task.client).items()}
        if (memories := self._memories) is not None:
            blocks |= {MEMORY + name: block for name, block in memories.load(task.client).items()}
        blocks |= {PERSONAL + name: block for name, block in self.module.personal.store.load(task.client).items()}
        return ClientState(task.round, blocks)

    def _other(self, request: Request, order: Order) -> ClientAnswer:
        """Gather statistics or losses; the client's state does not change."""
        self.bench.order = order
        if request.job == "losses":
            if self.module.personal.names:  # the loss is that of the client's own net
                self._restore(order.task.client, self._known(request.federation, order))
            result = losses(self.bench, self.side.with_personal(order.task), request.samples)
            return ClientAnswer(order.task.client, loss=result.report.loss, passes=result.report.passes)
        result = statistics(self.bench, order.task)
        payload = wire.encode(
            DenseUpdate(result.vector.to(self._dtype)), round=order.task.round, client=order.task.client
        )
        return ClientAnswer(order.task.client, passes=result.report.passes, payload=payload)


def _part(blocks: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): block for name, block in blocks.items() if name.startswith(prefix)}
