"""``hetfl flower status RUN``, and the same numbers for Prometheus."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.flower.standing import Standing, Standings, read_standings

RUN = "run"
"""Name of the file, in Flower's folder, with the path of the run folder; it is there once training has begun."""
LOG = "server.log"
"""Name of the server's log in the run folder."""
SILENT_SECONDS = 90.0
"""Age of the standings from which a run may have ended; a running server writes them every second or few."""
LOOPBACK = "127.0.0.1"

TITLES = ("node", "state", "clients", "last seen", "rounds", "took", "late", "refused", "states lost", "up", "down")
COUNTERS = {
    "served": "rounds in which the node trained",
    "late": "deadlines that the node missed",
    "refused": "refused answers of the node's clients",
    "lost": "states of clients that the node has lost",
    "up_bytes": "bytes of the node's answers to training",
    "down_bytes": "bytes of the models that the node was sent",
}


def show_status(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Print the standing of a run's nodes; return the exit status.

    Raises:
        ConfigurationError: the run has no standings, or there are other arguments.
    """
    if rest:
        raise ConfigurationError(f"Expected the folder of a run alone but got {' '.join(rest)}")
    standings = read_standings(Path(given.run))
    print(json.dumps(asdict(standings)) if given.json else "\n".join(lines(standings, time.time())))
    return 0


def lines(standings: Standings, now: float) -> list[str]:
    """Return the standings as a table.

    Args:
        standings: of the nodes.
        now: seconds since 1970.
    """
    age = now - standings.written
    of = f"{standings.round}{f'/{standings.rounds}' if standings.rounds else ''}"
    moment = datetime.fromtimestamp(standings.written, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if standings.over:
        state = f"the server ended at {moment}"
    elif age < SILENT_SECONDS:
        state = f"as of {age:.0f} s ago"
    else:
        state = f"as of {moment}; the server was killed, or hangs"
    head = f"round {of}, {state}"
    missing = [f"no node serves clients {standings.missing}"] if standings.missing else []
    rows = [[*TITLES], *(_row(each, now) for each in standings.nodes.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    reasons = [f"node {each.name}: {each.reason}" for each in standings.nodes.values() if each.reason]
    return [head, *missing, *table, *reasons]


def _row(node: Standing, now: float) -> list[str]:
    seen = f"{max(0.0, now - node.last_seen):.0f} s ago" if node.last_seen else "never"
    counts = [f"{node.served}", f"{node.seconds:.1f} s", f"{node.late}", f"{node.refused}", f"{node.lost}"]
    return [node.name, node.state, node.clients, seen, *counts, _size(node.up_bytes), _size(node.down_bytes)]


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def metrics(standings: Standings) -> str:
    """Return the standings in the text format of Prometheus."""
    text = [
        *("# HELP hetfl_round The round that runs, from 1.", "# TYPE hetfl_round gauge"),
        f"hetfl_round {standings.round}",
        *("# HELP hetfl_written_seconds When the server wrote this.", "# TYPE hetfl_written_seconds gauge"),
        f"hetfl_written_seconds {standings.written:.3f}",
        *("# HELP hetfl_node_state 1 for the state that the node is in.", "# TYPE hetfl_node_state gauge"),
    ]
    nodes = [(_label(node.name), node) for node in standings.nodes.values()]
    text += [f"hetfl_node_state{{node={name},state={_label(node.state)}}} 1" for name, node in nodes]
    text += ["# HELP hetfl_node_last_seen_seconds When it was last seen.", "# TYPE hetfl_node_last_seen_seconds gauge"]
    text += [f"hetfl_node_last_seen_seconds{{node={name}}} {node.last_seen:.3f}" for name, node in nodes]
    for field, meaning in COUNTERS.items():
        text += [f"# HELP hetfl_node_{field}_total The {meaning}.", f"# TYPE hetfl_node_{field}_total counter"]
        text += [f"hetfl_node_{field}_total{{node={name}}} {getattr(node, field)}" for name, node in nodes]
    return "\n".join(text) + "\n"


def _label(value: str) -> str:
    """Return a value of a label, with the escapes of Prometheus."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@contextmanager
def serving_metrics(home: Path, port: int | None) -> Iterator[None]:
    """Serve the metrics of a run at a port of the loopback.

    Args:
        home: Flower's folder, in which a file names the run folder.
        port: the port; None: serve nothing.

    Raises:
        ConfigurationError: the port is in use.
    """
    if port is None:
        yield
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = _metrics_of(home) if self.path.split("?")[0] == "/metrics" else None
            self.send_response(404 if text is None else 200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        raise ConfigurationError(f"Expected a free port for --metrics_port but got {port}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _metrics_of(home: Path) -> str:
    run = home / RUN
    if not run.is_file():
        return metrics(Standings())
    try:
        return metrics(read_standings(Path(run.read_text(encoding="utf-8"))))
    except (ConfigurationError, OSError):
        return metrics(Standings())
