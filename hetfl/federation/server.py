"""The server's side of a round: it takes replies, adds up updates, and steps the global models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from hetfl import wire
from hetfl.accounting import Downloads, Ledger
from hetfl.aggregators.per_model import Aggregators
from hetfl.compression import ErrorFeedback
from hetfl.defence.ranges import ENTRY
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.federation.clients import Reply
from hetfl.federation.probing import RoundProbe
from hetfl.federation.task_parts import TaskParts
from hetfl.fleet import Work
from hetfl.local import Penalty
from hetfl.part import Part
from hetfl.types import Report, Task
from hetfl.updates import DenseUpdate, SparseUpdate, Update


@dataclass(frozen=True)
class Accepted:
    """A client's update that the server took.

    Attributes:
        report: what is known of the client's training.
        update: what the server decoded.
        index: where the update's entries lie in the global model: what was sent, parameters and then float buffers.
        peak: the largest absolute value in the update.
    """

    report: Report
    update: Update
    index: Part
    peak: float = 0.0


class Server:
    """Decodes and checks updates, adds them up, and takes the server's step; it sees only what was decoded.

    Args:
        parts: where vectors lie in the global models.
        uplink: its compressor may share a state with clients.
        aggregators: combine updates.
        penalty: may correct the step.
        ledger: takes costs.
        downloads: knows what clients have.

    Attributes:
        max_norm: largest 2-norm of an update, what travels exactly included; None: any.
    """

    def __init__(
        self,
        parts: TaskParts,
        uplink: ErrorFeedback,
        aggregators: Aggregators,
        penalty: Penalty,
        ledger: Ledger,
        downloads: Downloads,
    ) -> None:
        self.parts, self.models, self.uplink = parts, parts.models, uplink
        self.aggregators, self.penalty, self.ledger, self.downloads = aggregators, penalty, ledger, downloads
        self.max_norm: float | None = None

    def reset(self) -> None:
        """Begin to add up updates."""
        self.aggregators.reset(self.models.tensors, self.models.shared)
        self._accepted = 0

    def receive(self, reply: Reply, probe: RoundProbe, weight: float) -> Accepted | None:
        """Take a client's update, if it can be used and arrives in time, and charge what it cost.

        Args:
            reply: what came of the client.
            probe: who was asked what before.
            weight: what the selection lets the client count.

        Returns:
            None if the update was lost, refused or late: its delta is lost then, its residual stays as it was.
        """
        task, down_bytes = reply.task, self.down_bytes(reply.task, probe)
        if reply.report is None:
            rank_zero_warn(f"Round {task.round}: no update of client {self.ledger.called(task.client)}: {reply.lost}")
            self.ledger.lose(task.client, task.round, Work(down_bytes, 0.0))
            return None
        passes, up_bytes = reply.report.passes, len(reply.payload)
        work = self.models.levels.work(task, down_bytes, passes, up_bytes, training=True)
        try:
            update = self._decoded(reply)
            peak = _peak(update)
        except (wire.MalformedPayload, RefusedUpdate) as error:
            self._refuse(task, error, replace(work, up_bytes=0))
            return None
        if not self.ledger.in_time(task.client, task.round, work):
            self.ledger.lose(task.client, task.round, work)
            return None
        seconds, loss = self.ledger.seconds(task.client, task.round, work), probe.initial_loss(task)
        report = replace(reply.report, flops=float(work.flops), initial_loss=loss, weight=weight, seconds=seconds)
        try:
            self.aggregators.update(update, task.sent, report)
        except RefusedUpdate as error:
            self._refuse(task, error, work)
            return None
        self._accepted += 1
        self.ledger.charge(task.client, task.round, work)
        self.ledger.sent(
            entries=self.parts.held(task).size,
            sent=update.num_sent,
            update_bytes=up_bytes,
            dense_bytes=4 * task.sent.size,
        )
        return Accepted(report, update, task.sent, peak)

    def _refuse(self, task: Task, error: Exception, work: Work) -> None:
        who = f"client {self.ledger.called(task.client)} at level {task.level}"
        rank_zero_warn(f"Round {task.round}: update of {who} refused: {error}")
        self.ledger.charge(task.client, task.round, work)
        self.ledger.refuse()

    def down_bytes(self, task: Task, probe: RoundProbe) -> int:
        """Return the bytes that a client is sent before it trains; a client that was probed has the model already."""
        model = 0 if probe.has_model(task) else self.downloads.bytes(task)
        return model + self.uplink.compressor.shared_bytes(self.parts.held(task).held)

    def step(self, optimizer: Optimizer, step: Callable[[], object], round: int, known: bool) -> None:
        """Take the server's step; a round whose updates were all lost on the way moves nothing.

        Args:
            optimizer: the server's.
            step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
            round: the round.
            known: whether refused updates tell of training, and not of their senders.

        Raises:
            ConfigurationError: updates arrived, and all of them were refused.
        """
        refused = self.ledger.round.refused
        if not self._accepted and refused and known:
            raise ConfigurationError(
                f"Expected an update that can be used in round {round} but all {refused} were refused (training "
                "diverged?): try a smaller learning rate or gradient_clip"
            )
        if not self._accepted:
            rank_zero_warn("No update of a round arrived: all were late or failed, and the models stay as they are")
            step()  # no parameter has a gradient, so none moves; Lightning counts the round, and keeps it
            return
        server_step(optimizer, step, *self.aggregators.compute(self.penalty.correct))

    def _decoded(self, reply: Reply) -> Update:
        """Return what the server reads in a reply.

        Raises:
            MalformedPayload: it is not what was asked for.
            RefusedUpdate: the client could not make an update, or it is too long.
        """
        if reply.refusal:
            raise RefusedUpdate(reply.refusal)
        task, layout = reply.task, self.parts.held(reply.task).held
        exact = task.sent.size - layout.size
        dtype = self.models.like.dtype
        expected = wire.Expected(task.round, task.owner, layout.size, exact, dtype=dtype, layout=layout)
        update = wire.decode(reply.payload, expected)
        if self.max_norm is not None:
            norm = float(torch.cat([update.to_dense().double(), update.exact.double()]).norm())
            if norm > self.max_norm:
                raise RefusedUpdate(f"Expected a norm of at most {self.max_norm:g} but got {norm:g}")
        return update


def _peak(update: Update) -> float:
    """Return the largest absolute value in an update.

    Raises:
        RefusedUpdate: it is out of the range of an entry.
    """
    values = update.values if isinstance(update, DenseUpdate | SparseUpdate) else update.to_dense()
    parts = [part for part in (values, update.exact) if part.numel()]
    peak = max((float(torch.linalg.vector_norm(part, torch.inf)) for part in parts), default=0.0)
    if peak not in ENTRY:
        raise RefusedUpdate(f"Expected {ENTRY} but got {peak:g}")
    return peak


def server_step(
    optimizer: Optimizer,
    step: Callable[[], object],
    tensors: Mapping[str, Tensor],
    delta: Mapping[str, Tensor],
    holders: Mapping[str, Tensor],
) -> None:
    r"""Set :math:`\theta.\text{grad} = -\Delta`, step, and keep what nobody held.

    The server's optimizer is that of Reddi et al., Adaptive Federated Optimization (ICLR 2021, arXiv 2003.00295).

    SGD(lr=1) adds the mean delta: FedAvg. Adam is FedAdam. Under momentum, weight decay or Adam a zero gradient still
    moves a value: entries without holders, and the optimizer's state of them, are put back bit for bit. Float buffers
    have no gradient: they take the delta as it is.

    Args:
        optimizer: holds the global parameters and their state.
        step: performs the step (Lightning's wrapper of ``optimizer.step``, which counts it).
        tensors: the global parameters and float buffers.
        delta: the aggregated step of each tensor.
        holders: number or weight of holders of each entry; 0: nobody.
    """
    untouched: dict[nn.Parameter, tuple[Tensor, Tensor, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, nn.Parameter):
            tensor.add_(delta[name])
            continue
        if not tensor.requires_grad:
            continue
        tensor.grad = delta[name].neg()
        unheld = holders[name] == 0
        if bool(unheld.any()):
            untouched[tensor] = (unheld, tensor.detach().clone(), _state(optimizer, tensor))
    step()
    with torch.no_grad():
        for parameter, (unheld, value, before) in untouched.items():
            parameter.copy_(torch.where(unheld, value, parameter))
            for key, state in _state(optimizer, parameter).items():
                # State begins at zero, but for Rprop's steps, which the first step leaves as they begin.
                initial = state if key == "step_size" else torch.zeros_like(state)
                optimizer.state[parameter][key].copy_(torch.where(unheld, before.get(key, initial), state))
    optimizer.zero_grad(set_to_none=True)


def _state(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Return copies of the optimizer's state that has an entry per entry of the parameter."""
    state = optimizer.state.get(parameter, {})
    return {
        key: value.clone()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0
    }
