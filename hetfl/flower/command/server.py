"""``hetfl flower server``: a SuperLink, and a run of ``hetfl fit`` on it."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.flower.command.checks import check_server, own_folder
from hetfl.flower.command.processes import (
    POLL_SECONDS,
    FlowerProcess,
    certificate,
    environment,
    home_folder,
    listens,
    lives,
    require_free,
    wait_until,
)
from hetfl.flower.command.status import LOG, RUN, serving_metrics
from hetfl.flower.events import COLOURS, EventFile, EventLog
from hetfl.flower.patience import Patience
from hetfl.printable import printable
from hetfl.reading import parse_json
from hetfl.signals import taking_signals
from hetfl.started import COMMAND, started_by

START_SECONDS = 60.0
CONNECTION = "hetfl"

APP = """\
[project]
name = "hetflapp"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "hetfl"
[tool.flwr.app.components]
serverapp = "hetflapp.server:app"
clientapp = "hetflapp.client:app"
[tool.flwr.app.config]
settings = ""
"""
"""Flower's app: it only imports hetfl. Nodes of ``hetfl flower client`` run their installed hetfl instead of it."""
SERVER = """\
from hetfl.flower.command.server_app import server_app
from hetfl.flower.command.operating import end_with_parent

end_with_parent()
app = server_app
"""
REGISTERING = Path(__file__).with_name("registering.py")
STOP_SECONDS = 3.0
"""Seconds that the run may take to end at a signal before training has begun."""
REFUSALS = {
    "No SuperNode found with the given public key": "a node whose key is not registered tried to join (--node_keys)",
    "ApiError:2001": "a node without a key tried to join: give it --key",
    "could not be activated": "a node tried to join whose key is still taken for online, for up to a minute",
}
"""Reports of what the SuperLink writes to its log."""
AGAIN_SECONDS = 60.0
"""Least seconds between two reports of one kind of refusal."""


def run_server(given: argparse.Namespace, rest: Sequence[str], watch: Callable[[], object] = lambda: None) -> int:
    """Start a SuperLink, run the ServerApp on it, and print the run's output; return the run's exit status.

    Args:
        given: the options.
        rest: the arguments of fit.
        watch: called periodically; an exception of it ends the run.

    Raises:
        ConfigurationError: an option is invalid, the port is in use, or a process of Flower failed.
    """
    patience = check_server(given)
    require_free(given.host, given.port)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(given.host, given.host)
    with home_folder(given.home) as home, own_folder(home), taking_signals() as received:
        log = EventLog(EventFile(home / "events"), Path(given.log) if given.log else None, given.json_logs)
        address = f"[{local}]:{given.port}" if ":" in local else f"{local}:{given.port}"
        _connect(home, address, given)
        env = environment(home, **{COMMAND: started_by()})
        link = FlowerProcess(_superlink(given), home / "superlink.log", env)
        try:
            wait_until(lambda: bool(received) or listens(local, given.port), link, START_SECONDS)
            names = _registered(given, home, env, received)
            if not received:
                admits = f"nodes with the keys {', '.join(names.values())}" if given.node_keys else "any node"
                log(
                    "listening",
                    f"at {given.host}:{given.port}{' by TLS' if given.certificates else ''}; admits {admits}",
                )
                _prepare(home, given, patience, names, rest)
                _flwr([str(Path(sys.executable).parent / "flwr"), "run", str(home / "app"), CONNECTION], env, received)
            with serving_metrics(home, given.metrics_port):
                return _follow(home, link, log, received, watch)
        finally:
            link.stop()
            log.forward()


def _connect(home: Path, address: str, given: argparse.Namespace) -> None:
    """Write the file in which Flower's commands find the SuperLink, and remove what an earlier run has left."""
    tls = (
        f"root-certificates = {json.dumps(str(certificate(given.certificates, 'ca.crt')))}"
        if given.certificates
        else "insecure = true"
    )
    config = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}"\n{tls}\n'
    write_whole(home / "config.toml", config.encode())
    for name in ("output", "pid", "status", RUN):
        (home / name).unlink(missing_ok=True)


def _registered(given: argparse.Namespace, home: Path, env: dict[str, str], received: Sequence[int]) -> dict[str, str]:
    """Register the nodes' keys; return the names of the keys' files by node."""
    if not given.node_keys or received:
        return {}
    keys = [str(key.absolute()) for key in sorted(Path(given.node_keys).glob("*.pub"))]
    output = _flwr([sys.executable, "-P", str(REGISTERING), CONNECTION, *keys], env, received)
    nodes = parse_json(output.strip().splitlines()[-1]) if not received else {}
    return {str(node): printable(Path(key).stem, 60) for key, node in nodes.items()}


def _prepare(
    home: Path, given: argparse.Namespace, patience: Patience, names: dict[str, str], rest: Sequence[str]
) -> None:
    """Write the app that Flower runs, with its settings."""
    settings = {
        "arguments": list(rest),
        "folder": os.getcwd(),
        "home": str(home),
        "patience": vars(patience),
        "max_norm": given.max_norm,
        "names": names,
    }
    package = home / "app" / "hetflapp"
    for path, text in {
        package.parent / "pyproject.toml": APP.replace(
            'settings = ""', f"settings = {json.dumps(json.dumps(settings))}"
        ),
        package / "__init__.py": "",
        package / "server.py": SERVER,
        package / "client.py": "from hetfl.flower.command.client_app import client_app\n\napp = client_app\n",
    }.items():
        write_whole(path, text.encode())


def _superlink(given: argparse.Namespace) -> list[str]:
    """Return the command of a SuperLink that keeps its state in memory.

    A database would keep the keys of nodes that may no longer join. A message of a gigabyte also locks it for seconds,
    which ends the run.
    """
    command = ["flower-superlink", "--host", given.host, "--port", str(given.port)]
    command += ["--disable-runtime-dependency-installation"]
    if not given.certificates:
        return [*command, "--insecure"]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
        command += [f"--ssl-{option}", str(certificate(given.certificates, name))]
    return [*command, *(["--enable-supernode-auth"] if given.node_keys else [])]


def _flwr(command: Sequence[str], env: dict[str, str], received: Sequence[int]) -> str:
    """Run a command of Flower; return its output. A signal ends it.

    Raises:
        ConfigurationError: the command failed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        while process.poll() is None and not received:
            time.sleep(POLL_SECONDS / 4)
        if process.poll() is None:
            process.kill()
            process.wait()
            return ""
        output.seek(0)
        text = output.read()
    if process.returncode and not received:
        words = COLOURS.sub("", " ".join(text.split()))
        raise ConfigurationError(f"Expected {Path(command[0]).name} to succeed but got: {words[-500:]}")
    return text


def _follow(
    home: Path, link: FlowerProcess, log: EventLog, received: Sequence[int], watch: Callable[[], object]
) -> int:
    """Print the run's output until it has ended, and pass signals on to it; return its exit status."""
    passed, until = 0, math.inf
    status, pid, run, refusals = home / "status", home / "pid", home / RUN, Refusals(link.log, log)
    with (home / "output").open("a+", encoding="utf-8") as file:
        file.seek(0)
        while not status.is_file():
            _show(file)
            log.forward()
            refusals.look()
            watch()
            if run.is_file() and (folder := run.read_text(encoding="utf-8")):
                log.keep_in(Path(folder) / LOG)
            if link.process.poll() is not None:
                raise ConfigurationError(f"Expected flower-superlink to go on but it ended: {link.last_words()}")
            if pid.is_file() and not lives(int(pid.read_text())) and not status.is_file():
                if received:
                    return 128 + received[0]
                raise ConfigurationError(f"Expected the run to go on but its process was killed ({link.log})")
            for number in received[passed:]:
                log("stopping", f"{signal.Signals(number).name}{'' if run.is_file() else ': training has not begun'}")
                if not pid.is_file() or passed > 1:
                    return 128 + number
                with suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), number)
                passed += 1
                until = min(until, math.inf if run.is_file() else time.monotonic() + STOP_SECONDS)
            if time.monotonic() > until:
                return 128 + received[0]
            time.sleep(POLL_SECONDS)
        _show(file)
    ended = int(status.read_text())
    log("ended", f"with status {ended}")
    return ended


class Refusals:
    """Reports nodes that the SuperLink does not admit, which never reach the run.

    Args:
        path: of the SuperLink's log.
        log: takes the events.
    """

    def __init__(self, path: Path, log: EventLog) -> None:
        self._path, self._log, self._read = path, log, 0
        self._next: dict[str, float] = {}

    def look(self) -> None:
        """Read what the SuperLink has written since the last call."""
        if (size := self._path.stat().st_size) == self._read:
            return
        self._read = 0 if size < self._read else self._read  # the file was cut
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read().decode(errors="replace")
            self._read = file.tell()
        for mark, report in REFUSALS.items():
            if mark in text and time.monotonic() >= self._next.get(mark, 0.0):
                self._log("refused", report)
                self._next[mark] = time.monotonic() + AGAIN_SECONDS


def _show(file: IO[str]) -> None:
    sys.stdout.write(file.read())
    sys.stdout.flush()
