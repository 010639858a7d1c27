"""What the server knows of each node, in a file of the run folder that ``hetfl flower status`` reads."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.printable import printable
from hetfl.reading import parse_json, read_bytes

FILE = "nodes.json"
"""Name of the file in a run folder."""
WRITE_SECONDS = 1.0
"""Least seconds between two writes."""
LARGEST_FILE = 100_000_000
MOST_NODES = 10_000
"""Largest number of nodes that are kept; those that are away are forgotten first."""

State = Literal["serving", "standing by", "late", "refused", "gone"]
"""serving: it is asked; standing by: another node serves its clients; late: it has missed a deadline and has not
answered since; refused: it cannot take part; gone: it has no connection."""


@dataclass
class Standing:
    """What the server knows of a node, since the server's start.

    Attributes:
        name: of the node; its key's name where keys are registered.
        state: of the node.
        clients: as ranges, such as ``0-4``.
        reason: why it is refused; empty: it is not.
        joined: seconds since 1970.
        last_seen: when it last answered or was seen to be online, seconds since 1970.
        served: number of rounds in which it trained.
        late: number of missed deadlines.
        refused: number of refused answers of its clients.
        lost: number of lost states.
        up_bytes: of its answers to training.
        down_bytes: of the models that it was sent.
        seconds: from the order to its answer, in the last round that it served.
    """

    name: str
    state: State = "serving"
    clients: str = ""
    reason: str = ""
    joined: float = 0.0
    last_seen: float = 0.0
    served: int = 0
    late: int = 0
    refused: int = 0
    lost: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    seconds: float = 0.0


@dataclass
class Standings:
    """The standing of all nodes, and of the run.

    Attributes:
        nodes: by name.
        round: the round that runs, from 1; 0: the first has not begun.
        rounds: of the run; 0: no limit.
        missing: clients without a node, as ranges.
        over: whether the server has ended the run.
        written: when this was written, seconds since 1970.
    """

    nodes: dict[str, Standing] = field(default_factory=dict)
    round: int = 0
    rounds: int = 0
    missing: str = ""
    over: bool = False
    written: float = 0.0

    def of(self, name: str) -> Standing:
        """Return the standing of a node, a new one if there is none."""
        if name not in self.nodes and len(self.nodes) >= MOST_NODES:  # a node may come under many names
            away = [each.name for each in self.nodes.values() if each.state in ("gone", "refused")]
            del self.nodes[(away or [*self.nodes])[0]]
        return self.nodes.setdefault(name, Standing(name, joined=time.time()))


class StandingFile:
    """Writes standings to a run folder, at most once a second.

    Args:
        clock: returns monotonic seconds.

    Attributes:
        standings: the standings, which the server changes.
        folder: the run folder; None: not known yet, and nothing is written.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.standings = Standings()
        self.folder: Path | None = None
        self._clock, self._next = clock, 0.0

    def write(self, now: bool = False) -> None:
        """Write the standings, unless they have just been written; a full disk is no error.

        Args:
            now: whether to write them in any case.
        """
        if self.folder is None or (not now and self._clock() < self._next):
            return
        self._next = self._clock() + WRITE_SECONDS
        self.standings.written = time.time()
        try:
            write_whole(self.folder / FILE, json.dumps(asdict(self.standings)).encode())
        except OSError:
            return

    def end(self) -> None:
        """Write that the run is over."""
        self.standings.over = True
        self.write(now=True)


def read_standings(run: Path) -> Standings:
    """Return the standings in a run folder.

    Raises:
        ConfigurationError: the folder has none, or the file has another form.
    """
    path = run / FILE
    if not path.is_file():
        raise ConfigurationError(f"Expected the folder of a run of hetfl flower server but got no {FILE} in {run}")
    try:
        content = parse_json(read_bytes(path, LARGEST_FILE).decode(), LARGEST_FILE)
        nodes = {str(name): _read(Standing, value) for name, value in content.pop("nodes").items()}
        standings: Standings = _read(Standings, {**content, "nodes": nodes})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"Expected {path} as hetfl flower server writes it but got: {error}") from error
    return standings


def _read(kind: type[Any], values: dict[str, Any]) -> Any:
    """Return an object of a class with fields of some values; texts are printable, numbers are numbers."""
    kinds = {each.name: each.type for each in fields(kind)}
    if values.keys() != kinds.keys():
        raise ValueError(f"fields {sorted(values)[:20]}")
    for name, value in values.items():
        if kinds[name] in ("int", "float") and type(value) not in (int, float):
            raise ValueError(f"{name} {value!r:.40}")
        if kinds[name] == "bool" and type(value) is not bool:
            raise ValueError(f"{name} {value!r:.40}")
        if kinds[name] == "str" or name == "state":
            values[name] = printable(value)
    if "state" in values and values["state"] not in get_args(State):
        raise ValueError(f"state {values['state']}")
    return kind(**values)


def ranges(clients: list[int]) -> str:
    """Return clients as ranges.

    >>> ranges([0, 1, 2, 7, 9, 10]), ranges([])
    ('0-2,7,9-10', '')
    """
    parts: list[list[int]] = []
    for client in sorted(clients):
        if parts and client == parts[-1][1] + 1:
            parts[-1][1] = client
        else:
            parts.append([client, client])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)
