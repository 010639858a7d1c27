"""The progress of several runs in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hetfl.display.formats import cell, format_seconds
from hetfl.errors import LONGEST_MESSAGE
from hetfl.printable import printable
from hetfl.runs.headline import ACCURACY, Headline

State = Literal["waiting", "running", "done", "failed", "stopped"]
STYLES: dict[State, str] = {"waiting": "dim", "running": "", "done": "green", "failed": "red", "stopped": "yellow"}


@dataclass
class RunLine:
    """The state of one run.

    Attributes:
        name: name of its configuration.
        seed: its seed.
        rounds: total number of rounds.
        done: number of finished rounds.
        score: the latest headline; None: none yet.
        stage: the evaluation that the headline is from, ``test`` or ``validation``.
        state: whether it waits, runs, or how it ended.
        first: number of finished rounds at the start of its process.
        began: start of its process in seconds, by the clock of the display.
        seconds: duration of its process in seconds; 0 before its end.
        headline: the score by which models are compared, the same for all runs.
    """

    name: str
    seed: int
    rounds: int
    done: int = 0
    score: float | None = None
    state: State = "waiting"
    first: int = 0
    began: float = 0.0
    seconds: float = 0.0
    headline: Headline = ACCURACY
    stage: str = "validation"

    def pace(self, now: float) -> float | None:
        """Return the mean seconds per round, including the start of the process; None: unknown."""
        spent = now - self.began if self.state == "running" else self.seconds
        return spent / (self.done - self.first) if self.done > self.first else None


def seconds_left(lines: Sequence[RunLine], now: float, jobs: int = 1) -> float | None:
    """Return the seconds until all runs end; None: unknown.

    A run that has no pace yet is assumed to have the mean pace of runs of its name, or else of all runs.
    """
    paces = [(line.name, pace) for line in lines if (pace := line.pace(now)) is not None]
    if not paces:
        return None
    todo = [line for line in lines if line.state in ("waiting", "running")]
    total = 0.0
    for line in todo:
        measured = line.pace(now)
        alike = [measured] if measured is not None else [pace for name, pace in paces if name == line.name]
        chosen = alike or [pace for _, pace in paces]
        total += (line.rounds - line.done) * sum(chosen) / len(chosen)
    return total / max(1, min(jobs, len(todo)))


def in_view(lines: Sequence[RunLine], height: int) -> Sequence[RunLine]:
    """Return the lines that fit on the screen: those around the first unfinished run."""
    if len(lines) <= height:
        return lines
    first = next((i for i, line in enumerate(lines) if line.state in ("running", "waiting")), len(lines))
    start = min(max(0, first - 1), len(lines) - height)
    return lines[start : start + height]


class RunsProgress:
    """Shows rounds, headline and time of each run: in a terminal as a live table, otherwise as plain lines.

    Args:
        lines: the runs in display order; the caller updates them.
        jobs: number of runs at a time.
        console: console to print to; None: standard output.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        lines: Sequence[RunLine],
        jobs: int = 1,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lines = lines
        self.jobs = jobs
        self.console = console or Console()
        self.clock = clock
        self._began = clock()
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        self._live = Live(console=self.console, auto_refresh=False) if live else None

    def __enter__(self) -> Self:
        """Start the clock and the live table."""
        self._began = self.clock()
        if self._live is not None:
            self._live.start()
            self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live table; its last state stays on the screen."""
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def print(self, text: str) -> None:
        """Print a line, above the live table if there is one."""
        self.console.print(printable(text, LONGEST_MESSAGE), markup=False, highlight=False, soft_wrap=True)

    def begin(self, line: RunLine) -> None:
        """Show that the process of a run has started."""
        line.state, line.began, line.first = "running", self.clock(), line.done
        if self._live is None:
            rounds = f"{line.rounds - line.done} of {line.rounds}" if line.done else str(line.rounds)
            self.print(f"{line.name} seed {line.seed}: {rounds} round{'s' * (line.rounds > 1)} to do")
        self.refresh()

    def end(self, line: RunLine, state: State, reason: str = "") -> None:
        """Show how the process of a run has ended.

        Args:
            line: the run.
            state: done, failed or stopped.
            reason: the reason of a failure.
        """
        line.state, line.seconds = state, self.clock() - line.began
        text = f"{line.name} seed {line.seed}: {state} after {format_seconds(line.seconds)}"
        if state == "done":
            text = f"{line.name} seed {line.seed}: done in {format_seconds(line.seconds)}"
            if line.score is not None:
                text += f", {line.stage} {line.headline.words} {line.headline.shown(line.score, 1)}"
        elif state == "stopped":
            text += f", {line.done} of {line.rounds} rounds done"
        if self._live is None or state == "failed":
            self.print(f"{text}: {reason}" if reason else text)
        self.refresh()

    def refresh(self) -> None:
        """Redraw the live table if there is one."""
        if self._live is not None:
            self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """Return the table, and the line of totals below it."""
        now = self.clock()
        shown = in_view(self.lines, max(3, self.console.height - 5))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("run", no_wrap=True, overflow="ellipsis")
        table.add_column("", width=10)
        score = shown[0].headline.words if shown else ACCURACY.words
        for heading in ("round", score, "time", "left"):
            table.add_column(cell(heading), justify="right", no_wrap=True)
        for line in shown:
            table.add_row(*_cells(line, now), style=STYLES[line.state])
        over = sum(line.state == "done" for line in self.lines)
        parts = [f"{over} of {len(self.lines)} runs done", f"elapsed {format_seconds(now - self._began)}"]
        left = seconds_left(self.lines, now, self.jobs)
        if left:
            parts.append(f"left {format_seconds(left)}")
        if len(shown) < len(self.lines):
            parts.append(f"{len(shown)} of {len(self.lines)} shown")
        return Group(table, Text("  ".join(parts)))


def _cells(line: RunLine, now: float) -> tuple[str | Text | ProgressBar, ...]:
    running, pace = line.state == "running", line.pace(now)
    spent = now - line.began if running else line.seconds
    left = format_seconds(pace * (line.rounds - line.done)) if running and pace is not None else ""
    return (
        cell(f"{line.name} seed {line.seed}"),
        ProgressBar(total=line.rounds, completed=line.done),
        f"{line.done}/{line.rounds}",
        "" if line.score is None else line.headline.shown(line.score, 1),
        format_seconds(spent) if spent else "",
        left if running else "" if line.state in ("waiting", "done") else line.state,
    )
