"""What the terminal shows while several runs are under way."""

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
    """What is shown of one run.

    Attributes:
        name: of its configuration.
        seed: its seed.
        rounds: how many rounds it is to have.
        done: how many it has.
        score: the latest headline that is known; None: none yet.
        state: what is happening to it.
        first: how many rounds it had when its process began.
        began: when that was, on the display's clock.
        seconds: how long the process took, once it has ended.
        headline: the score by which models are compared, one for all runs.
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

    def pace(self, now: float) -> float | None:
        """Return the seconds that a round takes, the start of the process shared out; None: not known yet."""
        spent = now - self.began if self.state == "running" else self.seconds
        return spent / (self.done - self.first) if self.done > self.first else None


def seconds_left(lines: Sequence[RunLine], now: float, jobs: int = 1) -> float | None:
    """Return how long all runs will still take, by the pace of each, of its name or of all; None: not known yet."""
    paces = [(line.name, pace) for line in lines if (pace := line.pace(now)) is not None]
    if not paces:
        return None
    todo = [line for line in lines if line.state in ("waiting", "running")]
    total = 0.0
    for line in todo:
        own = line.pace(now)
        alike = [own] if own is not None else [pace for name, pace in paces if name == line.name]
        chosen = alike or [pace for _, pace in paces]
        total += (line.rounds - line.done) * sum(chosen) / len(chosen)
    return total / max(1, min(jobs, len(todo)))


def in_view(lines: Sequence[RunLine], height: int) -> Sequence[RunLine]:
    """Return the lines that fit: those around the first run that is not over."""
    if len(lines) <= height:
        return lines
    first = next((i for i, line in enumerate(lines) if line.state in ("running", "waiting")), len(lines))
    start = min(max(0, first - 1), len(lines) - height)
    return lines[start : start + height]


class RunsProgress:
    """Shows each run's rounds, headline and time; in a terminal as a live table, elsewhere as plain lines.

    Args:
        lines: the runs, in the order in which they are shown; the caller keeps them up to date.
        jobs: how many run at a time.
        console: where to print; None: standard output.
        clock: seconds that only rise.
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
        """Begin."""
        self._began = self.clock()
        if self._live is not None:
            self._live.start()
            self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def print(self, text: str) -> None:
        """Print a line, above the table where there is one."""
        self.console.print(printable(text, LONGEST_MESSAGE), markup=False, highlight=False, soft_wrap=True)

    def begin(self, line: RunLine) -> None:
        """Say that the process of a run has begun."""
        line.state, line.began, line.first = "running", self.clock(), line.done
        if self._live is None:
            rounds = f"{line.rounds - line.done} of {line.rounds}" if line.done else str(line.rounds)
            self.print(f"{line.name} seed {line.seed}: {rounds} round{'s' * (line.rounds > 1)} to do")
        self.refresh()

    def end(self, line: RunLine, state: State, reason: str = "") -> None:
        """Say how the process of a run has ended.

        Args:
            line: the run.
            state: done, failed or stopped.
            reason: why it failed.
        """
        line.state, line.seconds = state, self.clock() - line.began
        said = f"{line.name} seed {line.seed}: {state} after {format_seconds(line.seconds)}"
        if state == "done":
            shown = "" if line.score is None else f", test {line.headline.words} {line.headline.shown(line.score, 1)}"
            said = f"{line.name} seed {line.seed}: done in {format_seconds(line.seconds)}{shown}"
        elif state == "stopped":
            said += f", {line.done} of {line.rounds} rounds done"
        if self._live is None or state == "failed":
            self.print(f"{said}: {reason}" if reason else said)
        self.refresh()

    def refresh(self) -> None:
        """Draw the table again, where there is one."""
        if self._live is not None:
            self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """Return the table and the line below it."""
        now = self.clock()
        shown = in_view(self.lines, max(3, self.console.height - 5))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("run", no_wrap=True, overflow="ellipsis")
        table.add_column("", width=16)
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
