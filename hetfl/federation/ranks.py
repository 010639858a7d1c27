"""A round's clients shared over the processes of a distributed trainer, its ranks: the same rounds, the same bits.

Every rank trains its share of a cohort, and all ranks get all messages; then each does the server's part by itself, in
the order of the cohort, so their models stay alike to the bit. Residuals are kept by rank zero, as in a run of one
process: it lends one to the rank that trains its client, and takes it back. What penalties remember of clients follows
from updates that all ranks have; so every rank keeps it.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hetfl.collective import Ranks
from hetfl.compression import Message
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import Clients, OwnClients, Reply
from hetfl.local import Auto, Result
from hetfl.local.executor import Bench, Job
from hetfl.packing import pack, unpack
from hetfl.piece import Piece
from hetfl.store import MemoryStore
from hetfl.types import Report, Task
from hetfl.updates import Update

T = TypeVar("T")


class RankClients(Clients):
    """Clients that the ranks share, the most expensive first, each to the rank that has least to do.

    Args:
        own: the clients of this rank.
        ranks: the processes.
        filing: the pieces that keep files which every rank needs: all but residuals.
    """

    def __init__(self, own: OwnClients, ranks: Ranks, filing: Sequence[Piece]) -> None:
        self.own, self._ranks, self._filing = own, ranks, filing
        self._uplink, self._parts = own.side.uplink, own.side.parts

    def begin(self) -> None:
        """Get ready to train, once a checkpoint has been loaded.

        Files in the run's folder are rank zero's. On other ranks, policies and penalties keep theirs in a folder of
        this process, and residuals are only ever lent.
        """
        if self._ranks.rank == 0:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="hetfl_rank_")
        self._uplink.residuals = MemoryStore()
        for number, piece in enumerate(self._filing):
            piece.bind(f"{self._folder.name}/{number}")

    def train(self, tasks: Sequence[Task]) -> Iterator[Reply]:  # noqa: D102
        shares = self.shares(tasks)
        self._lend(tasks, shares)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]

        replies = self._attempt(lambda: list(self.own.train(mine)))
        packed = self._ranks.everyone(pack([_written(reply) for reply in replies]))
        residuals = self._returned(tasks, shares, replies)
        answers = [iter(unpack(part)) for part in packed]
        for task, rank in zip(tasks, shares, strict=True):
            reply = _read(task, next(answers[rank]))
            if reply.payload and self._ranks.rank == 0:
                index = self._parts.held(task)
                prepared = Message(task.owner, task.round, index, reply.payload, residuals[task.key])
                reply = replace(reply, prepared=prepared)
            yield reply

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:  # noqa: D102
        shares = self.shares(tasks)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        results = self._attempt(lambda: list(self.own.run(job, mine)))
        packed = self._ranks.everyone(pack([[r.vector, *_numbers(r.report)] for r in results]))
        answers = [iter(unpack(part)) for part in packed]
        for task, rank in zip(tasks, shares, strict=True):
            vector, *numbers = next(answers[rank])
            yield Result(task, _report(task, numbers), vector.to(self._bench.device))

    def take(self, reply: Reply, update: Update) -> None:  # noqa: D102
        if self._ranks.rank == 0:
            self.own.take(reply, update)
        else:  # the server's part of a penalty may read what clients remember, an evaluation what they keep
            self.own.side.remember(reply, update)

    def shares(self, tasks: Sequence[Task]) -> list[int]:
        """Return the rank of each task: the most expensive first, to the rank with the least cost so far."""
        costs = [self._bench.cost(task) for task in tasks]
        ranks, load = [0] * len(tasks), [0] * self._ranks.count
        for i in sorted(range(len(tasks)), key=lambda i: (-costs[i], i)):
            ranks[i] = min(range(self._ranks.count), key=lambda rank: (load[rank], rank))
            load[ranks[i]] += costs[i]
        return ranks

    @property
    def _bench(self) -> Bench:
        return self.own.executor.bench

    def _lend(self, tasks: Sequence[Task], shares: Sequence[int]) -> None:
        """Hand out the residuals of clients to the ranks that train them."""
        uplink, zero, like = self._uplink, self._ranks.rank == 0, self._parts.models.like
        lent: list[list[tuple[Tensor | None, int | None]]] = [[] for _ in range(self._ranks.count)]
        for task, rank in zip(tasks, shares, strict=True) if zero else ():
            lent[rank].append(uplink.lend(task.owner, self._parts.held(task), like))
        parts = unpack(self._ranks.from_zero([pack(pairs) for pairs in lent]))
        if zero:
            return
        uplink.residuals = MemoryStore()
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        for task, (residual_D, last) in zip(mine, parts, strict=True):
            uplink.borrow(task.owner, self._parts.held(task), residual_D, last)

    def _returned(
        self, tasks: Sequence[Task], shares: Sequence[int], replies: Sequence[Reply]
    ) -> dict[tuple[int, int], Tensor | None]:
        """Return by task's key the residuals that all ranks have prepared; on ranks other than zero nothing."""
        prepared = [None if reply.prepared is None else reply.prepared.residual_D for reply in replies]
        parts = [iter(unpack(part)) for part in self._ranks.at_zero(pack(prepared))]
        return {task.key: next(parts[rank]) for task, rank in zip(tasks, shares, strict=True)} if parts else {}

    def _attempt(self, work: Callable[[], list[T]]) -> list[T]:
        """Do this rank's part; if any rank fails, fail on all, so that none waits for ever.

        Raises:
            RuntimeError: another rank failed.
        """
        done: list[T] = []
        failure: Exception | None = None
        try:
            done = work()
        except Exception as error:
            failure = error
        reasons = self._ranks.everyone(b"" if failure is None else f"{type(failure).__name__}: {failure}".encode())
        if failure is not None:
            raise failure
        for rank, reason in enumerate(reasons):
            if reason:
                raise RuntimeError(f"Expected every rank to do its part but rank {rank} failed: {reason.decode()}")
        return done


def shared_clients(clients: Clients, trainer: Trainer, filing: Sequence[Piece]) -> Clients:
    """Return the clients of a run: those of this process, or shared with the other processes of a trainer.

    Args:
        clients: of the run before, or as they were configured.
        trainer: the trainer, set up.
        filing: the pieces that keep files which every rank needs: all but residuals.

    Raises:
        ConfigurationError: the trainer's processes do not all have the whole model, or would not train alike.
    """
    own = clients.own if isinstance(clients, RankClients) else clients
    if trainer.world_size == 1:
        return own
    if not isinstance(trainer.strategy, DDPStrategy) or not isinstance(own, OwnClients):
        raise ConfigurationError(
            f"Expected strategy ddp, and clients of the trainer's own, for {trainer.world_size} devices but got "
            f"{type(trainer.strategy).__name__} and {type(own).__name__}"
        )
    if isinstance(own.executor, Auto):
        raise ConfigurationError(
            "Expected an executor by name for several devices but got Auto, which every rank would choose by itself"
        )
    # Every rank logs the same numbers, as each of them does the server's part; only residual/norm is another, as rank
    # zero alone keeps residuals, and rank zero's is what loggers write.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")
    return RankClients(own, Ranks(), filing)


def _numbers(report: Report) -> list[Any]:
    # The loss of a client that diverged is no number, which JSON has no word for.
    numbers = [report.samples, report.passes, report.steps, dict(report.extras)]
    return [torch.tensor(report.loss, dtype=torch.float64), *numbers]


def _report(task: Task, numbers: Sequence[Any]) -> Report:
    loss, samples, passes, steps, extras = numbers
    kinds = {"lr": task.lr, "model": task.model, "passes": passes, "steps": steps, "extras": extras}
    return Report(task.client, task.level, samples, float(loss), **kinds)


def _written(reply: Reply) -> list[Any]:
    assert reply.report is not None
    payload = torch.from_numpy(np.frombuffer(reply.payload, dtype=np.uint8).copy())
    return [*_numbers(reply.report), payload, reply.refusal, reply.personal]


def _read(task: Task, fields: Sequence[Any]) -> Reply:
    *numbers, payload, refusal, personal = fields
    return Reply(task, _report(task, numbers), payload.numpy().tobytes(), refusal, personal=personal)
