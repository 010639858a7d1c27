"""Worker processes: the same bits for any number of them, and handling of their failures and deaths."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.local import Executor, FedDyn, LocalTraining, Result, Sequential, Stacked, Workers
from hetfl.local.bench import Bench
from hetfl.local.forks import shared_memory
from hetfl.local.jobs import statistics, train
from hetfl.local.workers import _Run
from hetfl.types import Report, Task
from tests.conftest import small_net
from tests.local_cases import Problem, bench_of

pytestmark = pytest.mark.usefixtures("double_precision")


TASKS = [
    Task(k, level, 1, 1, 0.05) for k, level in ((2, "a"), (0, "b"), (1, "a"), (0, "a"), (2, "b"), (1, "b"), (0, "b"))
]


def deltas(executor: Executor, job: Callable[..., object] = train, order: int = -1) -> list[Tensor]:
    """Return the vectors of a run, after comparing them with those of a second run in the same or reverse order."""
    problem = Problem(LocalTraining(epochs=2))
    executor.open(bench_of(problem))
    try:
        results = list(executor.run(job, TASKS))  # type: ignore[arg-type]
        again = list(executor.run(job, TASKS[::order]))[::order]  # type: ignore[arg-type]
    finally:
        executor.close()
    assert [r.task for r in results] == TASKS
    assert all(torch.equal(one.vector, two.vector) for one, two in zip(results, again, strict=True))
    return [r.vector for r in results]


@pytest.mark.parametrize("job", [train, statistics])
def test_workers_equal_sequential_for_any_number_of_workers(job: Callable[..., object]) -> None:
    expected = deltas(Sequential(), job)
    for num_workers in (1, 2, 5):
        actual = deltas(Workers(num_workers), job)
        assert all(torch.equal(one, two) for one, two in zip(expected, actual, strict=True))


def test_workers_receive_a_new_global_model() -> None:
    problem = Problem(LocalTraining())
    bench = bench_of(problem)
    workers, sequential = Workers(2), Sequential()
    workers.open(bench)
    sequential.open(bench)
    try:
        for version in range(3):
            tasks = [Task(k, "b", version, version, 0.05) for k in range(3)]
            pairs = zip(workers.run(train, tasks), sequential.run(train, tasks), strict=True)
            assert all(torch.equal(one.vector, two.vector) for one, two in pairs)
            with torch.no_grad():
                for p in problem.net.parameters():
                    p.add_(0.01)
    finally:
        workers.close()


def fails(bench: Bench, task: Task) -> object:
    """A job that raises an error."""
    raise ValueError(f"no luck with client {task.client}")


def dies(bench: Bench, task: Task) -> object:
    """A job that ends its process."""
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def test_only_worker_processes_keep_freed_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.local.forks.keep_freed_memory", lambda: (tmp_path / str(os.getpid())).touch())
    deltas(Workers(2))
    pids = {int(path.name) for path in tmp_path.iterdir()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_workers_stay_usable_after_failures() -> None:
    workers = Workers(1)
    workers.open(bench_of(Problem(LocalTraining())))
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="no luck") as caught:
                list(workers.run(fails, TASKS[:1]))  # type: ignore[arg-type]
        assert caught.value.__notes__ == [f"in the work of client {TASKS[0].client} at level {TASKS[0].level}"]
        assert "fails" in [entry.name for entry in caught.traceback], "no frames of the job"
        assert len(list(workers.run(train, TASKS))) == len(TASKS)
    finally:
        workers.close()


def fails_in_a_worker(bench: Bench, task: Task, pid: int) -> Result:
    """A job that raises an error in all processes but one."""
    if os.getpid() != pid:
        raise ValueError("not here")
    return train(bench, task)


MESSAGES = [
    (partial(fails_in_a_worker, pid=os.getpid()), "client 1 at level a but its worker failed:\n(.|\n)*not here"),
    (dies, r"client 1 at level a .* died \(exit code -9\), the second one"),
]


@pytest.mark.filterwarnings("ignore:Expected a result")
@pytest.mark.parametrize(("job", "message"), MESSAGES)
def test_a_failing_worker_is_reported_and_the_next_run_works(job: Callable[..., object], message: str) -> None:
    workers = Workers(1)
    workers.open(bench_of(Problem(LocalTraining())))
    try:
        with pytest.raises(RuntimeError, match=message):
            list(workers.run(job, TASKS))  # type: ignore[arg-type]
        assert len(list(workers.run(train, TASKS))) == len(TASKS)
    finally:
        workers.close()


def dies_once(bench: Bench, task: Task, mark: Path) -> Result:
    """A job that ends its process at the first attempt for one client."""
    if task.client == 2 and task.level == "b" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(bench, task)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_dead_worker_is_replaced_and_its_client_is_repeated(num_workers: int, tmp_path: Path) -> None:
    expected = deltas(Sequential())
    workers = Workers(num_workers)
    workers.open(bench_of(Problem(LocalTraining(epochs=2))))
    try:
        list(workers.run(train, TASKS))
        before = {worker.process.pid for worker in workers._workers}
        with pytest.warns(UserWarning, match="client 2 at level b .* another one repeats it"):
            completed = list(workers.run(partial(dies_once, mark=tmp_path / "mark"), TASKS))
        assert [result.task for result in completed] == TASKS
        assert all(torch.equal(one, two.vector) for one, two in zip(expected, completed, strict=True))
        after = {worker.process.pid for worker in workers._workers}
        assert (len(before), len(after), len(before & after)) == (num_workers, num_workers, num_workers - 1)
        assert all(worker.process.is_alive() for worker in workers._workers)
    finally:
        workers.close()


def test_a_worker_that_was_killed_between_rounds_is_replaced() -> None:
    expected = deltas(Sequential())
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining(epochs=2))))
    try:
        list(workers.run(train, TASKS))
        for worker in workers._workers:
            os.kill(worker.process.pid or 0, signal.SIGKILL)
            worker.process.join()
        with pytest.warns(UserWarning, match="another one repeats it"):
            completed = list(workers.run(train, TASKS))
        assert all(torch.equal(one, two.vector) for one, two in zip(expected, completed, strict=True))
    finally:
        workers.close()


@pytest.mark.parametrize("job", [train, statistics])
def test_stacked_workers_equal_stacked_for_any_number_of_workers(job: Callable[..., object]) -> None:
    """Another order would give another division into groups, whose results agree only up to rounding."""
    expected = deltas(Stacked(2), job, order=1)
    for num_workers in (1, 2, 5):
        actual = deltas(Workers(num_workers, Stacked(2)), job, order=1)
        assert all(torch.equal(one, two) for one, two in zip(expected, actual, strict=True))


def test_a_net_that_cannot_be_stacked_is_refused_before_a_worker_starts() -> None:
    workers = Workers(2, Stacked())
    workers.open(bench_of(Problem(LocalTraining(), lambda *, width=1.0: small_net(width=width, norm="batch"))))
    with pytest.raises(ConfigurationError, match="without running statistics"):
        next(workers.run(train, TASKS))
    assert workers._workers == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_go_on_after_a_signal_to_all_processes_of_a_run(number: int) -> None:
    expected = deltas(Sequential())
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining(epochs=2))))
    try:
        results = workers.run(train, TASKS)
        vectors = [next(results).vector]
        processes = [worker.process for worker in workers._workers]
        for process in processes:
            os.kill(process.pid or 0, number)
        vectors += [result.vector for result in results]
        assert all(torch.equal(one, two) for one, two in zip(expected, vectors, strict=True))
        assert [worker.process for worker in workers._workers] == processes
    finally:
        workers.close()


def begin(seconds: float) -> None:
    """Begin a cohort whose jobs take so long, and end."""
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining())))
    results = workers.run(partial(sleep_and_train, seconds=seconds), TASKS)
    next(results)
    kept.append((workers, results))


kept: list[object] = []


def sleep_and_train(bench: Bench, task: Task, seconds: float) -> Result:
    """A job that takes long at the smaller level, whose clients run last."""
    if task.level == "b":
        time.sleep(seconds)
    return train(bench, task)


def test_a_process_ends_its_workers_at_its_exit() -> None:
    """It terminates them by SIGTERM, which they ignore, and waits for them."""
    process = get_context("fork").Process(target=begin, args=(60,))
    process.start()
    process.join(timeout=20)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


def test_the_end_of_a_cohort_does_not_wait_for_results_that_nobody_reads() -> None:
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining())))
    results = workers.run(partial(sleep_and_train, seconds=60), TASKS)
    next(results)
    processes = [worker.process for worker in workers._workers]
    assert isinstance(results, Generator)
    results.close()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 2
    assert not workers._workers


@pytest.mark.parametrize(("window", "expected"), [(9, [3, 1, 2, 0]), (2, [1, 0, 3, 2]), (1, [0, 1, 2, 3])])
def test_large_groups_run_first_among_those_of_neighbouring_clients(window: int, expected: list[int]) -> None:
    """If all of a large cohort ran largest first, the results of all might wait for that of the first client."""
    bench = bench_of(Problem(LocalTraining()), (2, 5, 4, 9))
    tasks = [Task(client, "a", 1, 1, 0.05) for client in range(4)]
    assert list(_Run(train, tasks, [[0], [1], [2], [3]], None, bench, window).waiting) == expected


def test_memory_for_results_is_not_reserved() -> None:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = shared_memory(4 * whole)
    memory[-1] = 7
    assert memory[4 * whole - 1] == 7
    with pytest.raises(ConfigurationError, match=r"1073741824\.0 GiB of address space .* 'Cannot allocate memory'"):
        shared_memory(2**60)


def test_unread_results_do_not_reach_the_next_run() -> None:
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining())))
    try:
        expected = [r.vector for r in workers.run(train, TASKS)]
        next(iter(workers.run(train, TASKS[::-1])))
        actual = [r.vector for r in workers.run(train, TASKS)]
        assert all(torch.equal(one, two) for one, two in zip(expected, actual, strict=True))
    finally:
        workers.close()


def test_client_memories_are_not_moved_to_shared_memory() -> None:
    """Shared memory keeps a file open for each client's memory as long as it exists."""
    problem = Problem(LocalTraining(penalty=FedDyn(0.1)))
    sizes = {level: sum(p.numel() for p in problem.build(level).parameters()) for level in ("a", "b")}
    kept = {level: torch.ones(size, dtype=torch.float64) for level, size in sizes.items()}
    executor = Workers(2)
    executor.open(bench_of(problem))
    try:
        results = list(executor.run(train, TASKS, lambda task: replace(task, memory_D=kept[task.level])))
    finally:
        executor.close()
    assert len(results) == len(TASKS)
    assert not any(memory_D.is_shared() for memory_D in kept.values())


def whose(bench: Bench, task: Task) -> Result:
    """Return the process that trained a client."""
    return Result(task, Report(task.client, task.level, 1, 0.0), torch.tensor([os.getpid()]))


def test_the_least_busy_worker_gets_the_next_client() -> None:
    """The worker with the least work, not the one with the fewest clients: one client may be as large as several."""
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining()), (20, 12, 12)))
    try:
        tasks = [Task(k, "a", 1, 1, 0.05) for k in range(3)]
        first, second, third = (int(result.vector) for result in workers.run(whose, tasks))
    finally:
        workers.close()
    assert first != second == third


def test_workers_can_be_started_during_an_evaluation() -> None:
    """Lightning tests in inference mode, and statistics may be the first job of the workers."""
    workers = Workers(2)
    workers.open(bench_of(Problem(LocalTraining(epochs=2))))
    try:
        with torch.inference_mode():
            actual = [result.vector for result in workers.run(statistics, TASKS)]
        trained = [result.vector for result in workers.run(train, TASKS)]
    finally:
        workers.close()
    assert all(torch.equal(*pair) for pair in zip(actual, deltas(Sequential(), statistics), strict=True))
    assert all(torch.equal(*pair) for pair in zip(trained, deltas(Sequential(), train), strict=True))


def unsendable(bench: Bench, task: Task) -> Result:
    """Return a report that cannot be sent to another process."""
    result = statistics(bench, task)
    return replace(result, report=replace(result.report, extras={"lock": threading.Lock()}))  # type: ignore[dict-item]


def test_a_result_that_cannot_be_sent_is_an_error_with_its_reason() -> None:
    workers = Workers(1)
    workers.open(bench_of(Problem(LocalTraining())))
    try:
        with pytest.raises(RuntimeError, match="cannot pickle"):
            list(workers.run(unsendable, TASKS[:1]))
    finally:
        workers.close()
