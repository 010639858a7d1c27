"""Clients spread over persistent processes of one thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.local.executor import Bench, Executor, Job, LocalResult, LocalTask, Memory, remembering

AHEAD = 2
"""Tasks given to a worker at a time, so that it never waits for this process; each has a slot for its result."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    slots: Tensor
    given: deque[tuple[int, int]] = field(default_factory=deque)
    free: list[int] = field(default_factory=lambda: list(range(AHEAD)))


_Give = Callable[[int], tuple[Job, LocalTask]]
"""What a worker is sent for the task of a number."""


class Workers(Executor):
    """Persistent worker processes, forked at first use; the global model and the results are in shared memory.

    Results come back in the order of the tasks whatever the order in which clients finish, and every client's random
    numbers are its own: the same bits for any number of workers.

    Args:
        num_workers: number of processes; None: one per core that this process may use.

    Raises:
        ConfigurationError: fewer than one worker, no fork on this platform, or a model that is not on the CPU.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigurationError(f"Expected num_workers of at least 1 or null but got {num_workers}")
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ConfigurationError(
                "Expected a platform that can fork for executor Workers but got none: use Sequential"
            )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_workers = num_workers or cores
        self._workers: list[_Worker] = []

    def setup(self, bench: Bench) -> None:  # noqa: D102
        if bench.device.type != "cpu":
            raise ConfigurationError(
                f"Expected the model on the CPU for executor Workers but got {bench.device}: use Sequential"
            )
        self.close()
        super().setup(bench)
        for tensors in (bench.tensors, *bench.others):
            for tensor in tensors.values():
                tensor.data.share_memory_()

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[LocalTask], memory: Memory | None = None
    ) -> Iterator[LocalResult]:
        if not self._workers:
            self._workers = [self._start() for _ in range(self.num_workers)]
        # Largest first, so that no long task is left for the end; the order of the results does not change by it.
        cost = [self.bench.cost(task) for task in tasks]
        waiting = deque(sorted(range(len(tasks)), key=lambda i: (-cost[i], i)))

        def give(i: int) -> tuple[Job, LocalTask]:
            return job, remembering(tasks[i], memory)

        done: dict[int, LocalResult] = {}
        threads = torch.get_num_threads()
        try:
            # What the main process does between two results must not compete with the workers: threads of OpenMP that
            # wait for each other on busy cores make rounds several times as long.
            torch.set_num_threads(1)
            for _ in range(AHEAD):
                for worker in self._workers:
                    self._give(worker, give, waiting)
            for i in range(len(tasks)):
                while i not in done:
                    self._collect(give, tasks, waiting, done)
                yield done.pop(i)
        finally:
            torch.set_num_threads(threads)
            # Left early, by an error or by the consumer: answers still under way belong to nobody.
            if any(worker.given for worker in self._workers):
                self.close()

    def _give(self, worker: _Worker, give: _Give, waiting: deque[int]) -> None:
        if waiting and worker.free:
            i, slot = waiting.popleft(), worker.free.pop()
            worker.given.append((i, slot))
            worker.connection.send((*give(i), slot))

    def _collect(
        self, give: _Give, tasks: Sequence[LocalTask], waiting: deque[int], done: dict[int, LocalResult]
    ) -> None:
        ready = wait([w.connection for w in self._workers if w.given])
        for worker in self._workers:
            if worker.connection not in ready:
                continue
            i, slot = worker.given[0]
            who = f"client {tasks[i].client} at level {tasks[i].level}"
            try:
                answer, size = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                code = worker.process.exitcode
                raise RuntimeError(f"Expected a result for {who} but its worker died (exit code {code})") from None
            worker.given.popleft()
            if isinstance(answer, str):
                raise RuntimeError(f"Expected a result for {who} but its worker failed:\n{answer}")
            done[i] = replace(answer, task=tasks[i], vector=worker.slots[slot, :size].clone())
            worker.free.append(slot)
            self._give(worker, give, waiting)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        tensors = self.bench.tensors.values()
        first = next(iter(tensors))
        # Statistics can be longer than the parameters only by their counts: one entry per norm layer.
        size = sum(tensor.numel() for tensor in tensors) + len(tensors)
        slots = torch.empty(AHEAD, size, dtype=first.dtype).share_memory_()
        others = [worker.connection for worker in self._workers] + [ours]
        process = context.Process(target=_serve, args=(self.bench, theirs, slots, others), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, slots)

    def close(self) -> None:
        """Tell the workers to end, and wait for them."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers = []


def _serve(bench: Bench, connection: Connection, slots: Tensor, others: Sequence[Connection]) -> None:
    """Answer tasks until told to end, or until the main process is gone."""
    for other in others:
        other.close()
    # Ctrl-C reaches the whole process group; the main process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The main process ends its workers by SIGTERM; a handler inherited from a trainer would make it wait for ever.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # More than one thread in a forked process can hang: OpenMP's threads did not come along.
    torch.set_num_threads(1)
    own = Bench(bench.problem, bench.data, bench.tensors, bench.others)
    # The fork may have happened in the middle of an evaluation.
    with torch.inference_mode(False), torch.enable_grad(), bench.problem.precision_context():
        while True:
            try:
                message = connection.recv()
            except EOFError:
                return
            if message is None:
                return
            job, task, slot = message
            try:
                result = job(own, task)
                slots[slot, : result.vector.numel()].copy_(result.vector)
                small = replace(result, task=replace(task, memory_D=None), vector=torch.empty(0))
                connection.send((small, result.vector.numel()))
            except Exception:
                connection.send((traceback.format_exc(), 0))
