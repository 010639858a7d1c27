"""A round's clients shared over the processes of a distributed trainer, its ranks: the same rounds, the same bits.

Every rank trains its share of a cohort, and all ranks get all messages; then each does the server's part by itself, in
the order of the cohort, so their models stay alike to the bit. Residuals are kept by rank zero, as in a run of one
process: it lends one to the rank that trains its client, and takes it back. What penalties remember of clients follows
from updates that all ranks have; so every rank keeps it.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hetfl.clustering import Clustering
from hetfl.compression import Message
from hetfl.federation.clients import Clients, Hosting, Lost, OwnClients, Upload, held_index, send
from hetfl.federation.collective import Ranks, pack, unpack
from hetfl.local import LocalResult, LocalTask
from hetfl.local.executor import Bench, Job
from hetfl.local.jobs import train
from hetfl.selection import Selection
from hetfl.store import MemoryStore
from hetfl.updates import Update

T = TypeVar("T")

SAID = struct.Struct("<dqqqq")
"""Of a client: the mean loss, its samples, the samples passed, and the lengths of payload and refusal."""


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
        said = self._ranks.everyone(b"".join(map(_written, uploads)))
        residuals = self._returned(tasks, shares, uploads)
        positions = [0] * self._ranks.count
        for task, rank in zip(tasks, shares, strict=True):
            upload, positions[rank] = _read(said[rank], positions[rank], task)
            if upload.payload and self._ranks.rank == 0:
                index = held_index(self._module, task)
                prepared = Message(task.client, task.round, index, upload.payload, residuals[task.client])
                upload = replace(upload, prepared=prepared)
            yield upload

    def run(self, job: Job, tasks: Sequence[LocalTask]) -> Iterator[LocalResult]:  # noqa: D102
        shares = self.shares(tasks)
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        results = self._attempt(lambda: list(self._own.run(job, mine)))
        said = self._ranks.everyone(b"".join(SAID.pack(r.loss, r.num_samples, r.num_passes, 0, 0) for r in results))
        vectors = [iter(unpack(part)) for part in self._ranks.everyone(pack([r.vector for r in results]))]
        answers = [SAID.iter_unpack(part) for part in said]
        for task, rank in zip(tasks, shares, strict=True):
            loss, num_samples, num_passes, *_ = next(answers[rank])
            vector = next(vectors[rank])
            assert vector is not None
            yield LocalResult(task, vector.to(self._bench.device), loss, num_samples, num_passes)

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
        lent: list[list[Tensor | None]] = [[] for _ in range(self._ranks.count)]
        for task, rank in zip(tasks, shares, strict=True) if zero else ():
            residual_D, last = uplink.lend(task.client, held_index(self._module, task), like)
            lent[rank] += [residual_D, None if last is None else torch.tensor([last], dtype=torch.float64)]
        parts = unpack(self._ranks.from_zero([pack(vectors) for vectors in lent]))
        if zero:
            return
        uplink.residuals = MemoryStore()
        mine = [task for task, rank in zip(tasks, shares, strict=True) if rank == self._ranks.rank]
        for task, residual_D, last_1 in zip(mine, parts[::2], parts[1::2], strict=True):
            last = None if last_1 is None else int(last_1)
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


def _written(upload: Upload) -> bytes:
    refusal = upload.refusal.encode()
    numbers = (upload.loss, upload.num_samples, upload.num_passes, len(upload.payload), len(refusal))
    return SAID.pack(*numbers) + upload.payload + refusal


def _read(data: bytes, position: int, task: LocalTask) -> tuple[Upload, int]:
    """Return the upload that begins at a position, and where the next one does."""
    loss, num_samples, num_passes, payload, refusal = SAID.unpack_from(data, position)
    begin = position + SAID.size
    end = begin + payload + refusal
    text = data[begin + payload : end].decode()
    return Upload(task, loss, num_samples, num_passes, data[begin : begin + payload], text), end
