"""``hetfl flower client``: keeps a node and its SuperNode running."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.flower.command import reach
from hetfl.flower.command.checks import check_client, own_folder
from hetfl.flower.command.processes import POLL_SECONDS, FlowerProcess, certificate, environment, free_port, home_folder
from hetfl.flower.events import EventFile, EventLog
from hetfl.signals import taking_signals

RETRY_SECONDS = 5.0
"""Seconds before a SuperNode that ended is started again: the SuperLink still takes it for alive for a while."""
STABLE_SECONDS = 45.0
"""Seconds after which a SuperNode that goes on is connected; one without admission ends sooner."""
LOOK_SECONDS = 10.0
"""Seconds between two looks at whether the server is there."""
REMIND_SECONDS = 60.0
"""Seconds between two reports of the same trouble."""
INTERRUPTED = re.compile("CancelledError|KeyboardInterrupt")
"""Last words of a SuperNode whose connection the server has closed."""
KEY = re.compile(r"code: ?(\d+)")
REASONS = {
    "2001": "the server admits only nodes with a registered key: give --key",
    "2004": "its key is not registered at the server (--node_keys), or the server takes a former connection of it for "
    "alive, for up to a minute",
}
"""Reasons of the SuperLink, by the code in the SuperNode's last words."""


@dataclass
class RunningNode:
    """The processes of a node.

    Attributes:
        warm: makes the node, and runs its ClientApps.
        supernode: connects to the SuperLink; None: it does not run.
        command: of the SuperNode.
        home: folder of Flower's files.
        env: environment of the processes.
    """

    warm: FlowerProcess
    supernode: FlowerProcess | None
    command: Sequence[str]
    home: Path
    env: dict[str, str]

    def lives(self) -> bool:
        """Return whether the process with the node runs."""
        return self.warm.process.poll() is None

    def connect(self) -> None:
        """Start the SuperNode."""
        self.supernode = FlowerProcess(self.command, self.home / "supernode.log", self.env)
        write_whole(self.home / "supernode.pid", str(self.supernode.process.pid).encode())

    def tell(self) -> None:
        """Send SIGTERM to the SuperNode, and kill the rest: what clients have not finished is lost in any case."""
        self.warm.tell(signal.SIGKILL)
        if self.supernode is not None:
            self.supernode.tell()

    def stop(self) -> None:
        """End all processes."""
        self.tell()
        self.warm.stop(0.0)
        if self.supernode is not None:
            self.supernode.stop()


class Troubles:
    """Reports a trouble when it begins, when it changes, once a minute while it lasts, and when it ends.

    Args:
        log: takes the events.
        kinds: of the events: of the trouble, and of its end.
        end: text of its end.

    Attributes:
        last: the present trouble; empty: there is none.
    """

    def __init__(self, log: EventLog, kinds: tuple[str, str], end: str) -> None:
        self._log, self._kinds, self._end = log, kinds, end
        self.last, self._reported = "", 0.0

    def now(self, trouble: str) -> None:
        """Report the present trouble; empty: there is none."""
        changed = trouble != self.last
        if trouble and (changed or time.monotonic() - self._reported >= REMIND_SECONDS):
            self._log(self._kinds[0], trouble)
            self._reported = time.monotonic()
        elif changed:
            self._log(self._kinds[1], self._end)
        self.last = trouble


def run_client(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Keep a node running until a signal arrives; return the exit status."""
    check_client(given)
    with home_folder(given.home) as home, own_folder(home), taking_signals() as received:
        log = EventLog(EventFile(home / "events"), Path(given.log or Path(given.states) / "node.log"), given.json_logs)
        log("starting", f"node {name_of(given)} of clients {given.clients}, for the server at {given.server}")
        made = False
        while not received:
            node = start_node(given, rest, home)
            try:
                made |= _run(given, node, log, received)
            finally:
                if received:
                    log("stopping", f"{signal.Signals(received[0]).name}: orders that are not finished are lost")
                node.stop()
                log.forward()
            if not made and not received:  # not an error of the settings: systemd may start it again
                log("ended", f"the node's process ended before the node was made: {node.warm.last_words()}")
                return 1
            if not received:
                log("restarting", f"the node's process ended: {node.warm.last_words()}")
                _sleep(RETRY_SECONDS, received, log)
        return 0 if received[0] == signal.SIGTERM else 128 + received[0]


def _run(given: argparse.Namespace, node: RunningNode, log: EventLog, received: Sequence[int]) -> bool:
    """Serve with a node until its process ends or a signal arrives; return whether the node was made.

    Raises:
        ConfigurationError: the node cannot be made.
    """
    if not _wait_for_node(given, node, log, received):
        return False
    ends = Troubles(log, ("disconnected", "connected"), f"to the server at {given.server}")
    while not received and node.lives():
        _serve(given, node, log, received, ends)
    return True


def _wait_for_node(given: argparse.Namespace, node: RunningNode, log: EventLog, received: Sequence[int]) -> bool:
    """Wait until the node is made, its process ends, or a signal arrives; return whether it was made.

    Raises:
        ConfigurationError: a setting of the node is invalid.
    """
    begun = time.monotonic()
    while not received and not is_made(node.home / "report"):
        if not node.lives() and not is_made(node.home / "report"):
            return False
        time.sleep(POLL_SECONDS)
        log.forward()
    if received:
        return False
    log("made", f"clients {given.clients}, after {time.monotonic() - begun:.1f} s")
    return True


def _serve(
    given: argparse.Namespace, node: RunningNode, log: EventLog, received: Sequence[int], ends: Troubles
) -> None:
    """Connect to the server once it is there; return when the connection or the node has ended, or at a signal.

    Args:
        given: the options.
        node: its processes.
        log: takes the events.
        received: the signals.
        ends: reports why SuperNodes end.
    """
    ca = certificate(given.certificates, "ca.crt") if given.certificates else None
    troubles = Troubles(log, ("unreachable", "reachable"), f"the server at {given.server} is there")
    while not received and node.lives() and (trouble := reach.trouble(given.server, ca)):
        troubles.now(trouble)
        _sleep(RETRY_SECONDS, received, log)
    if received or not node.lives():
        return
    troubles.now("")
    if not ends.last:
        log("connecting", f"to the server at {given.server}{'' if ca is None else ' by TLS'}")
    node.connect()
    _watch(given, node, log, received, ends)
    if not received and node.lives():
        assert node.supernode is not None
        ends.now(f"the connection ended, it is made again: {_reason(node.supernode.last_words())}")
        node.supernode.stop()
        _sleep(RETRY_SECONDS, received, log)


def _watch(
    given: argparse.Namespace, node: RunningNode, log: EventLog, received: Sequence[int], ends: Troubles
) -> None:
    """Watch a SuperNode until it ends, or a signal arrives."""
    troubles = Troubles(log, ("unreachable", "reachable"), f"the server at {given.server} is there again")
    assert node.supernode is not None
    look, stable = time.monotonic() + LOOK_SECONDS, time.monotonic() + STABLE_SECONDS
    while not received and node.supernode.process.poll() is None and node.lives():
        if time.monotonic() >= look:
            troubles.now("" if reach.answers(given.server) else f"nothing answers at {given.server}; trying again")
            look = time.monotonic() + LOOK_SECONDS
        if ends.last and time.monotonic() >= stable:
            ends.now("")
        log.forward()
        time.sleep(POLL_SECONDS)
    log.forward()


def _reason(words: str) -> str:
    """Return the reason of a SuperNode's end."""
    if INTERRUPTED.search(words):
        return "the server has ended, or was started again"
    code = KEY.search(words)
    known = REASONS.get(code[1], "") if code else ""
    return f"{known}; {words}" if known else words


def is_made(report: Path) -> bool:
    """Return whether a node has been made yet.

    Args:
        report: file that the node's process writes: empty if the node was made, otherwise an error message.

    Raises:
        ConfigurationError: the node could not be made; has the message.
    """
    if not report.is_file():
        return False
    if trouble := report.read_text().strip():
        raise ConfigurationError(trouble.splitlines()[-1].removeprefix("hetfl: error: "))
    return True


def name_of(given: argparse.Namespace) -> str:
    """Return the name of a node: as given, that of its key's file, or that of this machine."""
    return str(given.name or (Path(given.key).name if given.key else socket.gethostname()))


def start_node(given: argparse.Namespace, rest: Sequence[str], home: Path) -> RunningNode:
    """Start the process that makes the node, and from which its ClientApps are forked."""
    report = home / "report"
    home.mkdir(parents=True, exist_ok=True)
    for old in (report, home / "supernode.pid"):
        old.unlink(missing_ok=True)
    address = f"127.0.0.1:{free_port()}"
    settings = {
        "arguments": list(rest),
        "clients": given.clients,
        "states": str(Path(given.states).absolute()),
        "folder": os.getcwd(),
        "name": name_of(given),
        "report": str(report),
        "home": str(home),
        "address": address,
        "root_certificates": str(certificate(given.certificates, "ca.crt")) if given.certificates else None,
        "log": str(home / "supernode.log"),
    }
    # ClientApps are forks, which cannot train in sight of a GPU; see hetfl.local.forks.
    env = environment(
        home, HETFL_NODE=json.dumps(settings), FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.01", CUDA_VISIBLE_DEVICES=""
    )
    command = _supernode(given, address)  # before a process starts, as it refuses wrong options
    warm = FlowerProcess(["-m", "hetfl.flower.command.warm"], home / "node.log", env)
    return RunningNode(warm, None, command, home, env)


def _sleep(seconds: float, received: Sequence[int], log: EventLog) -> None:
    until = time.monotonic() + seconds
    while not received and time.monotonic() < until:
        log.forward()
        time.sleep(POLL_SECONDS)


def _supernode(given: argparse.Namespace, address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    command = ["flower-supernode", "--superlink", given.server, "--host", host, "--port", port]
    command += ["--isolation", "process"]
    if given.key:
        command += ["--auth-supernode-private-key", str(Path(given.key).absolute())]
    if not given.certificates:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(certificate(given.certificates, "ca.crt"))]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "node.crt"), ("keyfile", "node.key")):
        command += [f"--ssl-{option}", str(certificate(given.certificates, name))]
    return command
