"""A round's clients shared over the processes of a distributed trainer, its ranks: the same rounds, the same bits.

Every rank trains its share of a cohort, and all ranks get all messages; then each does the server's part by itself, in
the order of the cohort, so their models stay alike to the bit. Residuals are kept by rank zero, as in a run of one
process: it lends one to the rank that trains its client, and takes it back. What penalties remember of clients follows
from updates that all ranks have; so every rank keeps it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from hetfl.clustering import Clustering
from hetfl.compression import Message
from hetfl.federation.clients import Clients, Hosting, Lost, OwnClients, Upload, held_index, send
from hetfl.federation.collective import Ranks
from hetfl.local import LocalResult, LocalTask
from hetfl.local.executor import Bench, Job
from hetfl.local.jobs import train
from hetfl.packing import pack, unpack
from hetfl.selection import Selection
from hetfl.store import MemoryStore
from hetfl.updates import Update

T = TypeVar("T")


class Shared(Hosting, Protocol):
    """What ranks need of a federated module besides."""

    bench: Bench | None
    selection: Selection
    clustering: Clustering


class RankClients(Clients):
    """Clients that the ranks share, the most expensive first, each to the rank that has least to do.

    Args:
        module: the federated module; every rank has its own.
        ranks: the processes.
    """

    def __init__(self, module: Shared, ranks: Ranks) -> None:
        self._module, self._ranks = module, ranks
        self._own = OwnClients(module)

    def begin(self) -> None:
        """Get ready to train, once a checkpoint has been loaded.

        Files in the run's folder are rank zero's. On other ranks, policies and penalties keep theirs in a folder of
        this process, and residuals are only ever lent.
        """
        if self._ranks.rank == 0:
            return
        module, self._folder = self._module, tempfile.TemporaryDirectory(prefix="hetfl_rank_")
        module.uplink.residuals = MemoryStore()
        module.selection.bind(f"{self._folder.name}/updates")
        module.clustering.bind(f"{self._folder.name}/clustering")
        if module.local.penalty is not None:
            module.local.penalty.bind(f"{self._folder.name}/memories")

    def train(self, tasks: Sequence[LocalTask]) -> Iterator[Upload | Lost]:  # noqa: D102
        shares = self.shares(tasks)
        self._lend(tasks, shares)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]

        def work() -> list[Upload]:
            results = self._module.executor.run(train, mine, self._module.memory)
            return [send(self._module, result) for result in results]

        uploads = self._attempt(work)
        said = self._ranks.everyone(pack([_written(upload) for upload in uploads]))
        residuals = self._returned(tasks, shares, uploads)
        answers = [iter(unpack(part)) for part in said]
        for task, rank in zip(tasks, shares, strict=True):
            upload = _read(task, next(answers[rank]))
            if upload.payload and self._ranks.rank == 0:
                index = held_index(self._module, task)
                prepared = Message(task.client, task.round, index, upload.payload, residuals[task.client])
                upload = replace(upload, prepared=prepared)
            yield upload

    def run(self, job: Job, tasks: Sequence[LocalTask]) -> Iterator[LocalResult]:  # noqa: D102
        shares = self.shares(tasks)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        results = self._attempt(lambda: list(self._own.run(job, mine)))
        said = self._ranks.everyone(pack([[r.vector, *_numbers(r)] for r in results]))
        answers = [iter(unpack(part)) for part in said]
        for task, rank in zip(tasks, shares, strict=True):
            vector, loss, num_samples, num_passes = next(answers[rank])
            yield LocalResult(task, vector.to(self._bench.device), float(loss), num_samples, num_passes)

    def take(self, upload: Upload, update: Update) -> None:  # noqa: D102
        task, penalty = upload.task, self._module.local.penalty
        if self._ranks.rank == 0:
            self._own.take(upload, update)
        elif penalty is not None:  # the server's part of it may read what clients remember
            penalty.remember(task.client, task.round, held_index(self._module, task), update)

    def shares(self, tasks: Sequence[LocalTask]) -> list[int]:
        """Return the rank of each task: the most expensive first, to the rank with the least cost so far."""
        costs = [self._bench.cost(task) for task in tasks]
        ranks, load = [0] * len(tasks), [0] * self._ranks.count
        for i in sorted(range(len(tasks)), key=lambda i: (-costs[i], i)):
            ranks[i] = min(range(self._ranks.count), key=lambda rank: (load[rank], rank))
            load[ranks[i]] += costs[i]
        return ranks

    @property
    def _bench(self) -> Bench:
        assert self._module.bench is not None
        return self._module.bench

    def _lend(self, tasks: Sequence[LocalTask], shares: Sequence[int]) -> None:
        """Hand out the residuals of clients to the ranks that train them."""
        uplink, zero = self._module.uplink, self._ranks.rank == 0
        like = next(iter(self._bench.tensors.values())).detach()
        lent: list[list[tuple[Tensor | None, int | None]]] = [[] for _ in range(self._ranks.count)]
        for task, rank in zip(tasks, shares, strict=True) if zero else ():
            lent[rank].append(uplink.lend(task.client, held_index(self._module, task), like))
        parts = unpack(self._ranks.from_zero([pack(pairs) for pairs in lent]))
        if zero:
            return
        uplink.residuals = MemoryStore()
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        for task, (residual_D, last) in zip(mine, parts, strict=True):
            uplink.borrow(task.client, held_index(self._module, task), residual_D, last)

    def _returned(
        self, tasks: Sequence[LocalTask], shares: Sequence[int], uploads: Sequence[Upload]
    ) -> dict[int, Tensor | None]:
        """Return by client the residuals that all ranks have prepared; on ranks other than zero nothing."""
        prepared = [None if upload.prepared is None else upload.prepared.residual_D for upload in uploads]
        parts = [iter(unpack(part)) for part in self._ranks.at_zero(pack(prepared))]
        return {task.client: next(parts[rank]) for task, rank in zip(tasks, shares, strict=True)} if parts else {}

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


def _numbers(of: Upload | LocalResult) -> list[Any]:
    # The loss of a client that diverged is no number, which JSON has no word for.
    return [torch.tensor(of.loss, dtype=torch.float64), of.num_samples, of.num_passes]


def _written(upload: Upload) -> list[Any]:
    payload = torch.from_numpy(np.frombuffer(upload.payload, dtype=np.uint8).copy())
    return [*_numbers(upload), payload, upload.refusal]


def _read(task: LocalTask, said: Sequence[Any]) -> Upload:
    loss, num_samples, num_passes, payload, refusal = said
    return Upload(task, float(loss), num_samples, num_passes, payload.numpy().tobytes(), refusal)
