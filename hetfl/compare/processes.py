"""The processes of a comparison: start, supervision, stop at the end of a round, and results."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hetfl.compare.plan import Action, PlannedRun, next_action, standing
from hetfl.cores import RUNS, usable_cores
from hetfl.display.runs import RunLine, RunsProgress
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.printable import printable
from hetfl.signals import taking_signals
from hetfl.started import COMMAND, started_by

START = "import sys; from hetfl.importing import imported; imported('hetfl.compare.one_run').main(sys.argv[1:])"
"""Code of the process of a run, whose arguments follow."""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0
"""Time that a comparison waits for the end of the runs of a comparison that was just killed."""


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """Lock a folder for one comparison; the processes of its runs hold the lock too, as long as they live.

    Yields:
        A file descriptor of the lock, for the runs.

    Raises:
        ConfigurationError: another comparison uses the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        for _ in range(round(PATIENCE_SECONDS / POLL_SECONDS)):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(POLL_SECONDS)
        else:
            raise ConfigurationError(f"Expected one comparison at a time in {out} but got another running comparison")
        yield file.fileno()


class RunProcess:
    """The process of a run.

    Args:
        run: the run.
        action: the action to execute.
        line: the displayed state of the run.
        lock: file descriptor of the lock, which the process keeps open.
        settings: of the environment.
    """

    def __init__(self, run: PlannedRun, action: Action, line: RunLine, lock: int, settings: Mapping[str, str]) -> None:
        self.run = run
        self.line = line
        self._sent = 0
        self._seen = (0, 0)
        prepare(run, action)
        environment = {**os.environ, COMMAND: started_by(), **settings}
        with run.log.open("ab") as log:
            self._log_start = log.tell()
            # A separate process group, so that Ctrl-C in a terminal reaches the process only through stop().
            self.process = subprocess.Popen(
                command(run, action),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(lock,),
                process_group=0,
            )

    def stop(self, signals: Sequence[int]) -> bool:
        """Send new signals to the process: the first stops it at the end of the round, the second at once.

        Args:
            signals: numbers of all signals received by now.

        Returns:
            Whether a signal was sent.
        """
        new = signals[self._sent :]
        for place, number in enumerate(new, start=self._sent):
            self.process.send_signal(number if place < 2 else signal.SIGKILL)
        self._sent = len(signals)
        return bool(new)

    def watch(self) -> None:
        """Update the displayed state."""
        with suppress(OSError):
            now = (self.run.folder / "metrics.csv").stat()
            if (now.st_mtime_ns, now.st_size) == self._seen:
                return
            self._seen = (now.st_mtime_ns, now.st_size)
        with suppress(ValueError, KeyError):  # read in the middle of a write
            at = standing(self.run.folder)
            self.line.done = at.done
            self.line.score, self.line.stage = at.score, at.stage

    def last_words(self) -> str:
        """Return the last error of the process, and the path of its log."""
        code = self.process.returncode
        with self.run.log.open("rb") as log:
            log.seek(self._log_start)
            output = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in output if line.startswith("hetfl: error: ")]
        last = (errors or output or ["no output"])[-1].removeprefix("hetfl: error: ").strip()
        if code == 0:
            last = "no round in its metrics.csv"
        elif code < 0:
            last = f"ended by {signal.Signals(-code).name}"
        return f"{printable(last)} ({printable(self.run.log)})"


def prepare(run: PlannedRun, action: Action) -> None:
    """Prepare the folder of a run for an action, and write its configuration."""
    if action is Action.ANEW:
        shutil.rmtree(run.folder)
    run.mark.unlink(missing_ok=True)
    write_whole(run.folder / "config.yaml", run.text.encode())


def command(run: PlannedRun, action: Action) -> list[str]:
    """Return the command of the process of a run."""
    verb = "test" if action is Action.TEST else "fit"
    checkpoint = ["--ckpt_path", str(run.checkpoint)] if action in (Action.RESUME, Action.TEST) else []
    program = [sys.executable, "-c", START, str(os.getpid()), str(run.folder)]
    return [*program, verb, "-c", str(run.folder / "config.yaml"), *checkpoint]


def shared(jobs: int) -> dict[str, str]:
    """Return the settings of the environment that divide the cores among a number of runs at a time."""
    if jobs <= 1:
        return {}
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, usable_cores() // jobs))}
    return {RUNS: str(jobs), **threads}


def run_all(
    runs: Sequence[PlannedRun], lines: Sequence[RunLine], progress: RunsProgress, *, lock: int, jobs: int = 1
) -> int | None:
    """Execute unfinished runs, several at a time; the failure of a run does not stop the others.

    Args:
        runs: the runs.
        lines: the displayed state of each run.
        progress: the display.
        lock: file descriptor of the lock, which every process keeps open.
        jobs: number of runs at a time.

    Returns:
        The number of the signal that stopped the runs; None: no signal.
    """
    todo = deque((run, action, line) for run, line in zip(runs, lines, strict=True)
                 if (action := next_action(run)) is not Action.SKIP)  # fmt: skip
    settings = shared(min(jobs, len(todo)))
    children: list[RunProcess] = []
    with taking_signals() as received:
        try:
            while children or (todo and not received):
                while todo and len(children) < jobs and not received:
                    children += _begun(*todo.popleft(), progress, lock, settings)
                time.sleep(POLL_SECONDS)
                _pass_on(received, children, progress)
                children = [child for child in children if not _is_over(child, progress, stopped=bool(received))]
                progress.refresh()
        finally:  # an error here must not leave processes
            for child in children:
                child.process.kill()
                child.process.wait()
    return received[0] if received else None


def _begun(
    run: PlannedRun, action: Action, line: RunLine, progress: RunsProgress, lock: int, settings: Mapping[str, str]
) -> list[RunProcess]:
    """Start the process of a run and return it; return none if that fails, for example because the disk is full."""
    progress.begin(line)
    try:
        return [RunProcess(run, action, line, lock, settings)]
    except OSError as error:
        progress.end(line, "failed", f"{error.strerror} ({error.filename})")
        return []


def _pass_on(received: Sequence[int], children: Sequence[RunProcess], progress: RunsProgress) -> None:
    """Send new signals to the processes, and print a line at the first signal."""
    told = [child.stop(received) for child in children]
    if len(received) == 1 and any(told):
        name = "Ctrl-C" if received[0] == signal.SIGINT else "SIGTERM"
        progress.print(f"stopping after this round; once more {name} stops at once")


def _is_over(child: RunProcess, progress: RunsProgress, *, stopped: bool) -> bool:
    """Update the state of a process, and return whether it has ended."""
    code = child.process.poll()
    child.watch()
    if code is None:
        return False
    if code == 0 and child.line.done:
        try:
            write_whole(child.run.mark, str(child.run.rounds).encode())
        except OSError as error:
            progress.print(f"{child.run.mark} not written ({error.strerror})")
        progress.end(child.line, "done")
    elif code and stopped:
        progress.end(child.line, "stopped")
    else:
        progress.end(child.line, "failed", child.last_words())
    return True
