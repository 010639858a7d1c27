"""The processes of a comparison: started, watched, stopped at a round's end, and what became of each."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hetfl.compare.plan import Action, PlannedRun, next_action, standing
from hetfl.display.runs import RunLine, RunsProgress
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.printable import printable
from hetfl.runs.interrupt import taking_signals

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 5.0
"""How long a comparison waits for the runs of one that was just killed to be gone."""


@contextmanager
def only_one(out: Path) -> Iterator[int]:
    """Let one comparison at a time work in a folder; the runs that it starts count as it, as long as they live.

    Yields:
        A file descriptor that holds the lock: for the runs.

    Raises:
        ConfigurationError: another one is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        for _ in range(round(PATIENCE_SECONDS / POLL_SECONDS)):
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(POLL_SECONDS)
        else:
            raise ConfigurationError(f"Expected one comparison at a time in {out} but got another one at work there")
        yield file.fileno()


class RunProcess:
    """The process of a run.

    Args:
        run: the run.
        action: what is left to do with it.
        line: what is shown of it.
        lock: file descriptor that it is to keep open.
        threads: for OpenMP; None: as it is.
    """

    def __init__(self, run: PlannedRun, action: Action, line: RunLine, lock: int, threads: int | None) -> None:
        self.run = run
        self.line = line
        self._sent = 0
        self._seen = (0, 0)
        prepare(run, action)
        environment = {**os.environ, **({} if threads is None else {"OMP_NUM_THREADS": str(threads)})}
        with run.log.open("ab") as log:
            self._said_before = log.tell()
            # A process group of its own: Ctrl-C in a terminal reaches it once, through us.
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
        """Send the signals that it does not have yet: the first ends it at the round's end, the second at once.

        Returns:
            Whether there was one to send.
        """
        new = signals[self._sent :]
        for place, number in enumerate(new, start=self._sent):
            self.process.send_signal(number if place < 2 else signal.SIGKILL)
        self._sent = len(signals)
        return bool(new)

    def watch(self) -> None:
        """Bring its line up to date."""
        with suppress(OSError):
            now = (self.run.folder / "metrics.csv").stat()
            if (now.st_mtime_ns, now.st_size) == self._seen:
                return
            self._seen = (now.st_mtime_ns, now.st_size)
        with suppress(ValueError, KeyError):  # read in the middle of a write
            at = standing(self.run.folder)
            self.line.done = at.done
            self.line.score = at.score

    def last_words(self) -> str:
        """Return the line in which it says what went wrong, and where all of it stands."""
        code = self.process.returncode
        with self.run.log.open("rb") as log:
            log.seek(self._said_before)
            said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("hetfl: error: ")]
        last = (errors or said or ["it said nothing"])[-1].removeprefix("hetfl: error: ").strip()
        if code == 0:
            last = "no round in its metrics.csv"
        elif code < 0:
            last = f"ended by {signal.Signals(-code).name}"
        return f"{printable(last)} ({printable(self.run.log)})"


def prepare(run: PlannedRun, action: Action) -> None:
    """Make the folder of a run that is to begin or to go on, with its configuration."""
    if action is Action.ANEW:
        shutil.rmtree(run.folder)
    run.mark.unlink(missing_ok=True)
    write_whole(run.folder / "config.yaml", run.text.encode())


def command(run: PlannedRun, action: Action) -> list[str]:
    """Return the command of a run's process."""
    verb = "test" if action is Action.TEST else "fit"
    begun = ["--ckpt_path", str(run.checkpoint)] if action in (Action.RESUME, Action.TEST) else []
    own = [sys.executable, "-m", "hetfl.compare.one_run", str(os.getpid()), str(run.folder)]
    return [*own, verb, "-c", str(run.folder / "config.yaml"), *begun]


def run_all(
    runs: Sequence[PlannedRun], lines: Sequence[RunLine], progress: RunsProgress, *, lock: int, jobs: int = 1
) -> int | None:
    """Run what is not finished, some at a time; a run that fails does not keep others from going on.

    Args:
        runs: the runs.
        lines: what is shown of each.
        progress: shows it.
        lock: file descriptor that every process keeps open.
        jobs: how many run at a time.

    Returns:
        The number of the signal that stopped it all; None: none did.
    """
    todo = deque((run, action, line) for run, line in zip(runs, lines, strict=True)
                 if (action := next_action(run)) is not Action.SKIP)  # fmt: skip
    threads = None if jobs == 1 or "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // jobs)
    children: list[RunProcess] = []
    with taking_signals() as received:
        try:
            while children or (todo and not received):
                while todo and len(children) < jobs and not received:
                    children.append(RunProcess(*todo.popleft(), lock, threads))
                    progress.begin(children[-1].line)
                time.sleep(POLL_SECONDS)
                _pass_on(received, children, progress)
                children = [child for child in children if not _is_over(child, progress, stopped=bool(received))]
                progress.refresh()
        finally:  # an error of our own leaves no process behind
            for child in children:
                child.process.kill()
                child.process.wait()
    return received[0] if received else None


def _pass_on(received: Sequence[int], children: Sequence[RunProcess], progress: RunsProgress) -> None:
    """Give signals to the processes that do not have them yet, and say so the first time."""
    told = [child.stop(received) for child in children]
    if len(received) == 1 and any(told):
        name = "Ctrl-C" if received[0] == signal.SIGINT else "SIGTERM"
        progress.print(f"stopping after this round; once more {name} stops at once")


def _is_over(child: RunProcess, progress: RunsProgress, *, stopped: bool) -> bool:
    """Look after a process; return whether it has ended."""
    code = child.process.poll()
    child.watch()
    if code is None:
        return False
    if code == 0 and child.line.done:
        write_whole(child.run.mark, str(child.run.rounds).encode())
        progress.end(child.line, "done")
    elif code and stopped:
        progress.end(child.line, "stopped")
    else:
        progress.end(child.line, "failed", child.last_words())
    return True
