"""Where the time of a whole command goes, in wall time: a table of exclusive times.

A part's time excludes the parts that are called within it. The arguments are those of ``hetfl``, by default a demo.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time

BEGIN = time.perf_counter()  # before the imports, which are a part of the start

from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from lightning.pytorch import Trainer  # noqa: E402

from hetfl.cli import main as hetfl  # noqa: E402
from hetfl.federation.clients import ClientSide  # noqa: E402
from hetfl.federation.evaluation import Evaluation  # noqa: E402
from hetfl.federation.gathering import Gathering  # noqa: E402
from hetfl.federation.round import Round  # noqa: E402
from hetfl.federation.server import Server  # noqa: E402
from hetfl.local.default import DefaultExecutor  # noqa: E402
from hetfl.local.executor import InProcess  # noqa: E402
from hetfl.local.jobs import train  # noqa: E402
from hetfl.local.outputs import Outputs  # noqa: E402
from hetfl.local.own_scores import OwnScores  # noqa: E402
from hetfl.local.workers import Workers  # noqa: E402
from hetfl.runs.checkpoint import SafeCheckpointIO  # noqa: E402
from hetfl.runs.run_folder import RunFolder  # noqa: E402

METHODS: dict[str, list[tuple[type, str]]] = {
    "policies and bookkeeping of rounds": [(Round, "run")],
    "compress and encode": [(ClientSide, "send")],
    "decode, check and sum": [(Server, "receive")],
    "server step": [(Server, "step")],
    "evaluate": [(Evaluation, name) for name in ("measure_levels", "measure_clients", "measure_all", "columns")],
    "statistics": [(Gathering, "run")],
    "checkpoint": [(SafeCheckpointIO, "save_checkpoint")],
    "log": [(RunFolder, name) for name in ("log_metrics", "append_rows", "write_table")],
    "Lightning": [(Trainer, "fit"), (Trainer, "test")],
}
"""By part the methods whose time it is."""


class Parts:
    """A stack of running parts, with the exclusive time of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running = ["start and end"]
        self._since = BEGIN

    def _switch(self) -> None:
        now = time.perf_counter()
        part = self._running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the time of the context to a part."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def end(self) -> dict[str, float]:
        """Return the seconds by part."""
        self._switch()
        return self.seconds


def timed(parts: Parts, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose time is charged to a part."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with parts.part(name):
            return method(*args, **kwargs)

    return run


def timed_runs(parts: Parts, run: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Return an executor's ``run`` that charges the time until each result."""

    @functools.wraps(run)
    def results(self: Any, job: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        name, iterator = _work(job), run(self, job, *args, **kwargs)
        while True:
            with parts.part(name):
                try:
                    result = next(iterator)
                except StopIteration:
                    return
            yield result

    return results


def _work(job: Any) -> str:
    if isinstance(job, Outputs | OwnScores):
        return "evaluate"
    return "train" if job is train else "clients' statistics and answers"


def main() -> None:
    """Run a command of hetfl and print the table."""
    parts = Parts()
    for name, methods in METHODS.items():
        for cls, method in methods:
            setattr(cls, method, timed(parts, name, getattr(cls, method)))
    for executor in (DefaultExecutor, Workers, InProcess):
        executor.run = timed_runs(parts, executor.run)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        arguments = sys.argv[1:] or ["fit", "-c", "demo", f"--trainer.logger.init_args.root={folder}"]
        hetfl(arguments)
    seconds = parts.end()
    total = sum(seconds.values())
    print(f"\n{' '.join(['hetfl', *arguments])}\n{torch.get_num_threads()} threads, {total:.1f} s")
    for name, value in sorted(seconds.items(), key=lambda pair: -pair[1]):
        print(f"{name:36}{value:8.2f} s {100 * value / total:6.1f} %")


if __name__ == "__main__":
    main()
