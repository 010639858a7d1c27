"""Events of a federation: one line each, on standard error and in a log file, or as JSON.

Several processes belong to a server or a node. They append their events to one file; the watching command takes them
from this file, shows them and keeps them. The module imports nothing large, as the watching command uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from hetfl.printable import printable
from hetfl.reading import TooMuch, parse_json

COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Terminal commands in the output of other programs."""
LARGEST_EVENT = 1 << 16
"""Bound on the bytes of one event."""
REPEAT_SECONDS = 60.0
"""Seconds until the same refusal is shown again: a node is asked every few seconds whether it still refuses."""
LONGEST_TEXT = 1000
"""Characters of an event's text that are kept, as one printable line."""

Reporter = Callable[..., None]
"""Takes the kind and the text of an event, the name of its node, and facts by name."""


def silent(kind: str, text: str, node: str = "", **facts: Any) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Event:
    """Something that an operator should know.

    Attributes:
        kind: one word or two, such as ``joined``; the documentation lists all of them.
        text: one sentence, made printable.
        node: name of the node that it is about; empty: none.
        facts: numbers and names, for programs.
        seconds: when, since 1970.
    """

    kind: str
    text: str
    node: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        for name, longest in (("text", LONGEST_TEXT), ("node", 80)):
            plain = COLOURS.sub("", getattr(self, name))
            object.__setattr__(self, name, printable(plain, longest))

    @property
    def moment(self) -> str:
        """The time in UTC, ISO 8601."""
        return datetime.fromtimestamp(self.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def line(self) -> str:
        """Return the event for people.

        >>> Event("joined", "clients 0-4", "one", seconds=0.0).line()
        '1970-01-01T00:00:00Z joined: node one: clients 0-4'
        """
        return f"{self.moment} {self.kind}: {f'node {self.node}: ' if self.node else ''}{self.text}"

    def as_json(self) -> str:
        """Return the event for programs: one line of JSON."""
        head = {"time": self.moment, "event": self.kind, "node": self.node, "text": self.text}
        return json.dumps({**head, **{name: value for name, value in self.facts.items() if name not in head}})


class EventFile:
    """A file to which the processes of a server or a node append their events.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, kind: str, text: str, node: str = "", **facts: Any) -> None:
        """Append an event. If it cannot be written, it goes to standard error."""
        short = {name: fact[:LONGEST_TEXT] if isinstance(fact, str) else fact for name, fact in facts.items()}
        event = Event(kind, text, node, short)
        try:
            with self._locked("ab") as file:
                file.write(json.dumps(asdict(event)).encode() + b"\n")
        except OSError:
            sys.stderr.write(f"{event.line()}\n")

    def take(self) -> list[Event]:
        """Return the events since the last call, and remove them from the file."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return []
        with self._locked("rb+") as file:
            lines = file.read().splitlines()
            file.truncate(0)
        return [_event(line) for line in lines]

    @contextlib.contextmanager
    def _locked(self, mode: str) -> Iterator[IO[bytes]]:
        """Open the file; no other process has it open so."""
        with self.path.open(mode) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _event(line: bytes) -> Event:
    """Return the event of a line; one that cannot be read, as a full disk leaves it, is reported in its place."""
    try:
        return Event(**parse_json(line, LARGEST_EVENT))
    except (TypeError, ValueError, TooMuch) as error:
        return Event("warning", f"Expected an event but got {len(line)} bytes that cannot be read: {error}")


class EventLog:
    """Shows the events of a command's processes, and keeps them in a log file.

    Args:
        source: the events' file.
        log: the log file, which is appended to and may be renamed at any time; None: not known yet.
        as_json: whether lines are JSON.
        show: prints a line.
    """

    def __init__(
        self, source: EventFile, log: Path | None, as_json: bool, show: Callable[[str], object] | None = None
    ) -> None:
        self._source, self._as_json = source, as_json
        self._show = show or (lambda line: sys.stderr.write(f"{line}\n"))
        self._log: Path | None = None
        self._kept: list[str] = []  # lines that wait for a log file
        self._last: tuple[tuple[str, str, str], float] = ("", "", ""), 0.0  # the last event, and when
        if log is not None:
            self.keep_in(log)

    def __call__(self, kind: str, text: str, node: str = "", **facts: Any) -> None:
        """Report an event of the command itself."""
        self._source(kind, text, node, **facts)
        self.forward()

    def keep_in(self, log: Path) -> None:
        """Set the log file if there is none yet, and write the lines so far."""
        if self._log is None:
            self._log = log
            self._write([])

    def forward(self) -> list[Event]:
        """Show and keep the events since the last call; return them."""
        events = self._source.take()
        lines = [event.as_json() if self._as_json else event.line() for event in events if not self._repeats(event)]
        for line in lines:
            self._show(line)
        if lines:
            self._write(lines)
        return events

    def _repeats(self, event: Event) -> bool:
        """Return whether an event is the same refusal as the last one, less than a minute ago."""
        content = (event.kind, event.text, event.node)
        before, since = self._last
        if event.kind == "refused" and content == before and event.seconds - since < REPEAT_SECONDS:
            return True
        self._last = content, event.seconds
        return False

    def _write(self, lines: list[str]) -> None:
        self._kept += lines
        if self._log is None or not self._kept:
            return
        try:
            with self._log.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self._kept))
            self._kept = []
        except OSError as error:
            self._kept = self._kept[-LONGEST_TEXT:]  # they are written once there is space
            self._show(f"hetfl: {printable(self._log)} not written ({error.strerror})")
