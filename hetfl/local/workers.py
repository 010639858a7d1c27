"""Clients distributed over persistent processes with one thread each."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl.cores import cores_of_run
from hetfl.errors import ConfigurationError
from hetfl.local.bench import Bench
from hetfl.local.executor import Executor, InProcess, Job, Recall, Result, recalled
from hetfl.local.forks import fork_refusal, serve, shared_memory
from hetfl.local.sequential import Sequential
from hetfl.tree import length, mapped
from hetfl.types import Task

AHEAD = 2
"""Groups that a worker has at a time, so that it never waits for this process; each has a slot for its results."""
WINDOW = 8
"""Groups per worker that are given out largest first, before the groups of later clients."""
PATIENCE_SECONDS = 5.0
"""Seconds that idle workers may take to end, all together, before they are killed."""
SHORTEST = 1024
"""Numbers of a client that a slot has room for at least: an answer to a question may be longer than a small model."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    slots: Tensor
    given: deque[tuple[int, int]] = field(default_factory=deque)
    free: list[int] = field(default_factory=lambda: list(range(AHEAD)))


class _Run:
    """The waiting groups and the finished results of a cohort."""

    def __init__(
        self,
        job: Job,
        tasks: Sequence[Task],
        groups: Sequence[list[int]],
        recall: Recall | None,
        bench: Bench,
        window: int,
    ) -> None:
        self.job, self.tasks, self.groups, self.recall, self.bench = job, tasks, groups, recall, bench
        self.done: dict[int, Result] = {}
        self.repeated: set[int] = set()
        self.costs = [sum(bench.cost(tasks[i]) for i in group) for group in groups]
        self.waiting = deque(self._order(window))

    def _order(self, window: int) -> Iterator[int]:
        """Yield the groups in the order of the results, but those of each window largest first.

        So no long group runs last, and not more than two windows of results wait for an earlier one.
        """
        numbers = sorted(range(len(self.groups)), key=lambda number: self.groups[number])
        for part in np.array_split(numbers, max(1, len(numbers) // window)):
            yield from sorted(part.tolist(), key=lambda number: (-self.costs[number], number))

    def message(self, number: int) -> tuple[Job, list[Task]]:
        """Return the message to a worker for a group."""
        tasks = [self.bench.small(recalled(self.tasks[i], self.recall)) for i in self.groups[number]]
        # Sending a tensor moves its memory into a file that stays open as long as the tensor lives. So send a copy, and
        # not the store's tensor.
        return self.job, [_copied(task) for task in tasks]

    def group_text(self, number: int) -> str:
        """Return the text that names a group's clients and level."""
        tasks = [self.tasks[i] for i in self.groups[number]]
        if tasks[0].inputs is not None:
            return f"an evaluation of {length(tasks[0].inputs)} samples"
        clients = ", ".join(str(task.client) for task in tasks)
        return f"client{'s' if len(tasks) > 1 else ''} {clients} at level {tasks[0].level}"

    def take(self, number: int, answers: Sequence[tuple[Result, int]], slot_D: Tensor) -> None:
        """Store a group's results, whose vectors lie in a slot one after the other."""
        position = 0
        for i, (small, size) in zip(self.groups[number], answers, strict=True):
            vector = slot_D[position : position + size].clone()
            self.done[i] = replace(small, task=self.tasks[i], vector=vector)
            position += size


class Workers(Executor):
    """Persistent worker processes, forked at first use; the global model and the results are in shared memory.

    Results are bit-identical for any number of workers: they come back in the order of the tasks, every client has its
    own random generator, and groups depend only on the cohort. A worker that dies is replaced, and its group is
    repeated once.

    Args:
        num_workers: number of processes; None: one per core that this process may use, or this run's share of them in
            ``hetfl compare --jobs``.
        inner: runs the groups in each process; default: one client after the other. For ``hetfl.local.Stacked``, choose
            ``clients`` so small that every process gets a group of each level.

    Raises:
        ConfigurationError: fewer than one worker; at their start, no fork on this platform, a visible accelerator, or a
            model that is not on the CPU.
    """

    def __init__(self, num_workers: int | None = None, inner: InProcess | None = None) -> None:
        if num_workers is not None and num_workers < 1:
            raise ConfigurationError(f"Expected num_workers of at least 1 or null but got {num_workers}")
        self.num_workers, self.inner = num_workers or cores_of_run(), inner or Sequential()
        self._workers: list[_Worker] = []
        self._finalizer: Finalize | None = None

    def open(self, bench: Bench) -> None:  # noqa: D102
        if bench.device.type != "cpu":
            raise ConfigurationError(
                f"Expected the model on the CPU for executor Workers but got {bench.device}: use Sequential or Stacked"
            )
        self.close()
        super().open(bench)
        self.inner.open(bench)
        for tensors in bench.models:
            for tensor in tensors.values():
                tensor.data.share_memory_()

    def run(  # noqa: D102
        self, job: Job, tasks: Sequence[Task], recall: Recall | None = None
    ) -> Iterator[Result]:
        threads = torch.get_num_threads()
        try:
            # The main process must not compete with the workers between two results: OpenMP threads that wait for each
            # other on busy cores make rounds several times as long.
            torch.set_num_threads(1)
            groups = self.inner.groups(job, tasks)
            state = _Run(job, tasks, groups, recall, self.bench, window=WINDOW * self.num_workers)
            while len(self._workers) < self.num_workers:
                self._workers.append(self._start())
            self._give(state)
            for i in range(len(tasks)):
                while i not in state.done:
                    self._collect(state)
                yield state.done.pop(i)
        finally:
            torch.set_num_threads(threads)
            # The loop ended early, by an error or by the consumer: no code will read the pending answers.
            if any(worker.given for worker in self._workers):
                self.close()

    def _give(self, state: _Run) -> None:
        """Give waiting groups to the worker with the least work, as long as this worker has a free slot."""
        while state.waiting:
            worker = min(self._workers, key=lambda worker: sum(state.costs[number] for number, _ in worker.given))
            if not worker.free:  # all others have more work, even if they have a free slot
                return
            number, slot = state.waiting.popleft(), worker.free.pop()
            worker.given.append((number, slot))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker died; _collect replaces it
                worker.connection.send((*state.message(number), slot))

    def _collect(self, state: _Run) -> None:
        ready = wait([worker.connection for worker in self._workers if worker.given])
        for place, worker in enumerate(self._workers):
            if worker.connection not in ready:
                continue
            try:
                answer = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._workers[place] = self._replaced(worker, state)
            else:
                number, slot = worker.given.popleft()
                worker.free.append(slot)
                if isinstance(answer, str):
                    self._raise_here(state, number, answer)
                state.take(number, answer, worker.slots[slot])
            self._give(state)

    def _raise_here(self, state: _Run, number: int, trace: str) -> NoReturn:
        """Repeat a group that failed in a worker, so that its error has the frames of this process.

        Raises:
            Exception: that of the group.
            RuntimeError: the group succeeds here.
        """
        tasks = [recalled(state.tasks[i], state.recall) for i in state.groups[number]]
        try:
            with torch.inference_mode(False), torch.enable_grad(), self.bench.problem.precision_context():
                self.inner.work(state.job, tasks)
        except Exception as error:
            error.add_note(f"in the work of {state.group_text(number)}")
            raise
        raise RuntimeError(f"Expected a result for {state.group_text(number)} but its worker failed:\n{trace}")

    def _replaced(self, dead: _Worker, state: _Run) -> _Worker:
        """Return a new worker in place of a dead one, and put the dead worker's groups back into the queue.

        Raises:
            RuntimeError: another worker already died on the same group.
        """
        dead.process.join()
        numbers = [number for number, _ in dead.given]
        cause = f"its worker died (exit code {dead.process.exitcode})"
        if numbers[0] in state.repeated:
            raise RuntimeError(f"Expected a result for {state.group_text(numbers[0])} but {cause}, the second one")
        rank_zero_warn(f"Expected a result for {state.group_text(numbers[0])} but {cause}: another one repeats it")
        state.repeated.add(numbers[0])
        state.waiting.extendleft(reversed(numbers))
        dead.connection.close()
        return self._start(instead_of=dead)

    @property
    def room(self) -> int:  # noqa: D102
        return self.inner.most * max(self.bench.capacity, SHORTEST)

    def _start(self, instead_of: _Worker | None = None) -> _Worker:
        if refusal := fork_refusal():
            raise ConfigurationError(
                f"Expected forked processes that can train for executor Workers but got {refusal}: use Sequential"
            )
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        first = next(iter(self.bench.models[0].values()))
        size = self.room
        # Anonymous memory that forked processes share: pages that are never written take no memory.
        memory = shared_memory(AHEAD * size * first.element_size())
        # Workers may start in the middle of an evaluation, but must not write into an inference tensor.
        with torch.inference_mode(False):
            slots = torch.frombuffer(memory, dtype=first.dtype).view(AHEAD, size)
        others = [worker.connection for worker in self._workers if worker is not instead_of] + [ours]
        process = context.Process(target=serve, args=(self.bench, self.inner, theirs, slots, others), daemon=True)
        process.start()
        theirs.close()
        if self._finalizer is None:  # multiprocessing calls it before it waits for the workers at exit
            self._finalizer = Finalize(self, _kill, args=(self._workers,), exitpriority=0)
        return _Worker(process, ours, slots)

    def close(self) -> None:
        """End the workers, and wait for them: kill those that work, as no code will read their results."""
        _kill([worker for worker in self._workers if worker.given])
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.connection.send(None)
            worker.connection.close()
        until = time.monotonic() + PATIENCE_SECONDS
        for worker in self._workers:
            worker.process.join(timeout=max(0.0, until - time.monotonic()))
        _kill(self._workers)
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()


def _kill(workers: Sequence[_Worker]) -> None:
    """End the processes that have not ended."""
    for worker in workers:
        worker.process.kill()


def _copied(task: Task) -> Task:
    states = {name: getattr(task, name) for name in ("memory_D", "personal", "first_D")}
    copies: dict[str, Any] = {name: state.clone() for name, state in states.items() if state is not None}
    if task.inputs is not None:
        copies["inputs"] = mapped(torch.clone, task.inputs)
    return replace(task, **copies)
