"""A round's clients distributed over the processes (ranks) of a distributed trainer; results equal one process's.

Every rank trains its share of a cohort and receives the messages of all ranks. Each rank then does the server's work by
itself, in the order of the cohort, so that all ranks hold the same models, bit for bit. Rank zero keeps the residuals:
it lends a residual to the rank that trains the client, and takes it back. Penalties compute their memories from the
updates, which all ranks have; so every rank keeps the memories.
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
from hetfl.federation.clients import Clients, OwnClients
from hetfl.local import Result
from hetfl.local.bench import Bench
from hetfl.local.executor import Job
from hetfl.packing import pack, unpack
from hetfl.piece import Piece
from hetfl.schedule import Reply
from hetfl.store import ClientStore, MemoryStore
from hetfl.types import Report, Task
from hetfl.updates import Update

T = TypeVar("T")


class RankClients(Clients):
    """Clients distributed over the ranks: the most expensive task first, each to the rank with the least load.

    Args:
        inner: the clients of this rank.
        ranks: the processes.
        filing: the pieces whose files every rank needs: all but residuals.
    """

    def __init__(self, inner: OwnClients, ranks: Ranks, filing: Sequence[Piece]) -> None:
        self.inner, self._ranks, self._filing = inner, ranks, filing
        self._uplink, self._task_parts = inner.side.uplink, inner.side.task_parts

    def begin(self) -> None:
        """Prepare training, after a checkpoint has been loaded.

        Only rank zero writes files into the run's folder. Other ranks keep the files of policies and penalties in a
        temporary folder, and hold residuals only while they are lent.
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

        replies = self._attempt(lambda: list(self.inner.train(mine)))
        packed = self._ranks.everyone(pack([_written(reply) for reply in replies]))
        residuals = self._returned(tasks, shares, replies)
        answers = [iter(unpack(part)) for part in packed]
        for task, rank in zip(tasks, shares, strict=True):
            reply = _read(task, next(answers[rank]))
            if reply.payload and self._ranks.rank == 0:
                index = self._task_parts.compressed(task)
                prepared = Message(task.owner, task.round, index, reply.payload, residuals[task.key])
                reply = replace(reply, prepared=prepared)
            yield reply

    def run(self, job: Job, tasks: Sequence[Task]) -> Iterator[Result]:  # noqa: D102
        shares = self.shares(tasks)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        results = self._attempt(lambda: list(self.inner.run(job, mine)))
        packed = self._ranks.everyone(pack([[r.vector, *_numbers(r.report)] for r in results]))
        answers = [iter(unpack(part)) for part in packed]
        for task, rank in zip(tasks, shares, strict=True):
            vector, *numbers = next(answers[rank])
            yield Result(task, _report(task, numbers), vector.to(self._bench.device))

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.inner.load_state_dict(state)

    def take(self, reply: Reply, update: Update) -> None:  # noqa: D102
        if self._ranks.rank == 0:
            self.inner.take(reply, update)
        else:  # a penalty's server step may read clients' memories, and an evaluation their personal tensors
            self.inner.side.remember(reply, update)

    def shares(self, tasks: Sequence[Task]) -> list[int]:
        """Return the rank of each task: the most expensive task first, to the rank with the least total cost so far."""
        costs = [self._bench.cost(task) for task in tasks]
        ranks, load = [0] * len(tasks), [0] * self._ranks.count
        for i in sorted(range(len(tasks)), key=lambda i: (-costs[i], i)):
            ranks[i] = min(range(self._ranks.count), key=lambda rank: (load[rank], rank))
            load[ranks[i]] += costs[i]
        return ranks

    @property
    def _bench(self) -> Bench:
        return self.inner.executor.bench

    def _lend(self, tasks: Sequence[Task], shares: Sequence[int]) -> None:
        """Send the residuals of clients to the ranks that train the clients."""
        uplink, zero, like = self._uplink, self._ranks.rank == 0, self._task_parts.models.like
        lent: list[list[tuple[Tensor | None, int | None]]] = [[] for _ in range(self._ranks.count)]
        for task, rank in zip(tasks, shares, strict=True) if zero else ():
            lent[rank].append(uplink.lend(task.owner, self._task_parts.compressed(task), like))
        parts = unpack(self._ranks.from_zero([pack(pairs) for pairs in lent]))
        if zero:
            return
        uplink.residuals = MemoryStore()
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        for task, (residual_D, last) in zip(mine, parts, strict=True):
            uplink.borrow(task.owner, self._task_parts.compressed(task), residual_D, last)

    def _returned(
        self, tasks: Sequence[Task], shares: Sequence[int], replies: Sequence[Reply]
    ) -> dict[tuple[int, int], Tensor | None]:
        """Return by task key the residuals that all ranks prepared; on ranks other than zero an empty dict."""
        prepared = [None if reply.prepared is None else reply.prepared.residual_D for reply in replies]
        parts = [iter(unpack(part)) for part in self._ranks.at_zero(pack(prepared))]
        return {task.key: next(parts[rank]) for task, rank in zip(tasks, shares, strict=True)} if parts else {}

    def _attempt(self, work: Callable[[], list[T]]) -> list[T]:
        """Do this rank's work; if one rank fails, raise on all ranks, so that no rank waits forever.

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
                raise RuntimeError(f"Expected every rank to do its work but rank {rank} failed: {reason.decode()}")
        return done


def shared_clients(clients: Clients, trainer: Trainer, filing: Sequence[Piece]) -> Clients:
    """Return the clients of a run: those of this process, or clients distributed over the trainer's processes.

    Args:
        clients: of the previous run, or as configured.
        trainer: the trainer, set up.
        filing: the pieces whose files every rank needs: all but residuals.

    Raises:
        ConfigurationError: there are several processes, and the strategy is not DDP, the clients are on Flower, a
            store has a folder in which all ranks would write, or every rank would choose its executor by itself.
    """
    inner = clients.inner if isinstance(clients, RankClients) else clients
    if trainer.world_size == 1:
        if isinstance(inner, OwnClients):
            inner.executor.share(1)
        return inner
    if not isinstance(trainer.strategy, DDPStrategy) or not isinstance(inner, OwnClients):
        raise ConfigurationError(
            f"Expected strategy ddp, and clients in the trainer's processes, for {trainer.world_size} devices but got "
            f"{type(trainer.strategy).__name__} and {type(inner).__name__}"
        )
    for store in (each for piece in filing for each in vars(piece).values() if isinstance(each, ClientStore)):
        if store.fixed:
            raise ConfigurationError(
                f"Expected stores without a folder for {trainer.world_size} devices, each of which has files of its "
                f"own, but got {store.fixed}"
            )
    inner.executor.share(trainer.world_size)
    # Every rank does the server's work and logs the same numbers. Only residual/norm differs, as only rank zero keeps
    # residuals; loggers write rank zero's value.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")
    return RankClients(inner, Ranks(), filing)


def _numbers(report: Report) -> list[Any]:
    # The loss and the further numbers of a diverged client are NaN or infinite, which JSON cannot hold.
    names, values = list(report.extras), list(report.extras.values())
    floats_F = torch.tensor([report.loss, *values], dtype=torch.float64)
    return [floats_F, names, report.samples, report.passes, report.steps]


def _report(task: Task, numbers: Sequence[Any]) -> Report:
    floats_F, names, samples, passes, steps = numbers
    loss, *values = floats_F.tolist()
    extras = dict(zip(names, values, strict=True))
    kinds = {"lr": task.lr, "model": task.model, "passes": passes, "steps": steps, "extras": extras}
    return Report(task.client, task.level, samples, loss, **kinds)


def _written(reply: Reply) -> list[Any]:
    assert reply.report is not None
    payload = torch.from_numpy(np.frombuffer(reply.payload, dtype=np.uint8).copy())
    return [*_numbers(reply.report), payload, reply.refusal, reply.personal]


def _read(task: Task, fields: Sequence[Any]) -> Reply:
    *numbers, payload, refusal, personal = fields
    return Reply(task, _report(task, numbers), payload.numpy().tobytes(), refusal, personal=personal)
