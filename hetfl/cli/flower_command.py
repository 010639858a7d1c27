"""``hetfl flower server`` and ``hetfl flower client``: thin covers of Flower's commands, whose processes they own."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from hetfl.cli.flower_processes import (
    POLL_SECONDS,
    Child,
    environment,
    free_port,
    home_folder,
    listens,
    require_free,
    wait_until,
)
from hetfl.cli.running import taking_signals
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.flower import require_flower

DEFAULT_PORT = 9092
START_SECONDS = 60.0
RETRY_SECONDS = 5.0
"""Between two starts of a SuperNode that ended by itself: the SuperLink takes it for alive for a while."""
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
"""Flower's app: it only points to hetfl, which every machine has installed. No code of ours travels."""


def main(args: Sequence[str]) -> None:
    """Run ``hetfl flower ...``.

    Args:
        args: the arguments behind ``flower``.

    Raises:
        ConfigurationError: something is wrong with them, or Flower is not installed.
    """
    require_flower()
    given, rest = _parser().parse_known_args(list(args))
    roles = {"server": _server, "client": _client, "demo": _demo}
    sys.exit(roles[given.role](given, rest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hetfl flower", description="A federation on real devices.", allow_abbrev=False
    )
    roles = parser.add_subparsers(dest="role", required=True)
    server = roles.add_parser("server", allow_abbrev=False, help="a SuperLink, and a run of hetfl fit on it")
    server.epilog = "All other arguments are those of hetfl fit."
    server.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    server.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen at (%(default)s)")
    server.add_argument("--deadline", type=float, default=600.0, help="seconds that nodes have for an answer")
    server.add_argument("--enough", type=float, default=1.0, help="share of the clients asked that is waited for")
    server.add_argument("--start", type=float, default=300.0, help="seconds to wait for a node for every client")
    server.add_argument("--max_norm", type=float, help="largest 2-norm of an update; others are refused")
    server.add_argument("--certificates", help="folder of ca.crt, server.crt and server.key: TLS")
    server.add_argument("--node_keys", help="folder of nodes' public keys, *.pub: no other node may join")
    client = roles.add_parser("client", allow_abbrev=False, help="a SuperNode, for some clients")
    client.epilog = "All other arguments are those of hetfl fit, as the server has them."
    client.add_argument("--server", default=f"127.0.0.1:{DEFAULT_PORT}", help="the server's address (%(default)s)")
    client.add_argument("--clients", required=True, help="which clients this node serves: 0,3,7-9")
    client.add_argument("--states", required=True, help="folder for what belongs to them, to be kept")
    client.add_argument("--certificates", help="folder of ca.crt, node.crt and node.key: TLS")
    client.add_argument("--key", help="this node's private key; its public key lies beside it, with .pub")
    demo = roles.add_parser("demo", allow_abbrev=False, help="a server and its nodes, all on this machine")
    demo.epilog = "All other arguments are those of hetfl fit."
    demo.add_argument("--clients", required=True, action="append", help="clients of a node: 0,3,7-9; one for each node")
    for role in (server, client, demo):
        role.add_argument("--home", help="folder for Flower's files and logs, to be kept; else they go away")
    return parser


def _server(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Start a SuperLink, have it run the ServerApp, and show what that says; return the run's exit status."""
    if given.node_keys and not given.certificates:
        raise ConfigurationError(
            "Expected --certificates with --node_keys but got none: keys are for connections by TLS"
        )
    require_free(given.host, given.port)
    local = "127.0.0.1" if given.host in ("0.0.0.0", "127.0.0.1") else given.host
    with home_folder(given.home) as home, taking_signals() as received:
        _prepare(home, f"{local}:{given.port}", given, rest)
        env = environment(home)
        link = Child(_superlink(given, home), home / "superlink.log", env)
        try:
            wait_until(lambda: bool(received) or listens(local, given.port), link, START_SECONDS)
            for key in sorted(Path(given.node_keys).glob("*.pub")) if given.node_keys else ():
                _flwr(["supernode", "register", str(key.absolute()), CONNECTION], env)
            if not received:
                _flwr(["run", str(home / "app"), CONNECTION], env)
            return _follow(home, link, received)
        finally:
            link.stop()


def _prepare(home: Path, address: str, given: argparse.Namespace, rest: Sequence[str]) -> None:
    """Write what Flower reads: how the SuperLink is reached, and the app with its settings."""
    tls = (
        f"root-certificates = {json.dumps(str(_certificate(given, 'ca.crt')))}"
        if given.certificates
        else "insecure = true"
    )
    config = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}"\n{tls}\n'
    settings = {
        "arguments": list(rest),
        "folder": os.getcwd(),
        "output": str(home / "output"),
        "patience": {"deadline": given.deadline, "enough": given.enough, "start": given.start},
        "max_norm": given.max_norm,
    }
    package = home / "app" / "hetflapp"
    for path, text in {
        home / "config.toml": config,
        package.parent / "pyproject.toml": APP.replace(
            'settings = ""', f"settings = {json.dumps(json.dumps(settings))}"
        ),
        package / "__init__.py": "",
        package / "server.py": "from hetfl.cli.flower_apps import server_app\n\napp = server_app\n",
        package / "client.py": "from hetfl.cli.flower_apps import client_app\n\napp = client_app\n",
    }.items():
        write_whole(path, text.encode())
    for name in ("output", "pid", "status"):
        (home / name).unlink(missing_ok=True)


def _certificate(given: argparse.Namespace, name: str) -> Path:
    path = Path(given.certificates).absolute() / name
    if not path.is_file():
        raise ConfigurationError(f"Expected {name} in --certificates but got no such file: {path}")
    return path


def _superlink(given: argparse.Namespace, home: Path) -> list[str]:
    command = ["flower-superlink", "--host", given.host, "--port", str(given.port)]
    command += ["--database", str(home / "superlink.db"), "--disable-runtime-dependency-installation"]
    if not given.certificates:
        return [*command, "--insecure"]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
        command += [f"--ssl-{option}", str(_certificate(given, name))]
    return [*command, *(["--enable-supernode-auth"] if given.node_keys else [])]


def _flwr(args: Sequence[str], env: dict[str, str]) -> None:
    """Run a command of Flower's own.

    Raises:
        ConfigurationError: it failed.
    """
    done = subprocess.run(["flwr", *args], env=env, capture_output=True, text=True, start_new_session=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ConfigurationError(f"Expected flwr {args[0]} to succeed but got: {said[-500:]}")


def _follow(home: Path, link: Child, received: Sequence[int]) -> int:
    """Show what the run says until it has ended, passing signals on."""
    passed = 0
    output, status, pid = home / "output", home / "status", home / "pid"
    with output.open("a+", encoding="utf-8") as file:
        file.seek(0)
        while not status.is_file():
            _show(file)
            if link.process.poll() is not None:
                raise ConfigurationError(f"Expected flower-superlink to go on but it ended: {link.last_words()}")
            if pid.is_file() and not _lives(int(pid.read_text())) and not status.is_file():
                raise ConfigurationError(f"Expected the run to go on but its process was killed ({link.log})")
            for number in received[passed:]:
                if not pid.is_file() or passed > 1:
                    return 128 + number
                with suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), number)
                passed += 1
            time.sleep(POLL_SECONDS)
        _show(file)
    return int(status.read_text())


def _show(file: IO[str]) -> None:
    sys.stdout.write(file.read())
    sys.stdout.flush()


def _lives(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _client(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Keep a SuperNode running until told to stop; return the exit status."""
    with home_folder(given.home) as home, taking_signals() as received:
        while not received:
            node = _start_node(given, rest, home)
            try:
                _watch_node(given, node, home / "report", received)
            finally:
                node.stop()
            if not received:
                sys.stderr.write(f"hetfl: flower-supernode ended, starting it again: {node.last_words()}\n")
                _sleep(RETRY_SECONDS, received)
        return 0 if received[0] == signal.SIGTERM else 128 + received[0]


def _watch_node(given: argparse.Namespace, node: Child, report: Path, received: Sequence[int]) -> None:
    """Wait until a SuperNode ends or a signal comes, and say when the node is ready.

    Raises:
        ConfigurationError: the node cannot be made of its settings.
    """
    ready = False
    while not received and node.process.poll() is None:
        if not ready and report.is_file():
            if trouble := report.read_text().strip():
                raise ConfigurationError(trouble.splitlines()[-1].removeprefix("hetfl: error: "))
            ready = True
            print(f"node of clients {given.clients} is ready for {given.server}", flush=True)
        time.sleep(POLL_SECONDS)


def _demo(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run a server and its nodes here, over the loopback; return the run's exit status."""
    port = str(free_port())
    with home_folder(given.home) as home:
        nodes: list[Child] = []
        try:
            for number, clients in enumerate(given.clients):
                own = home / f"node{number}"
                arguments = ["client", "--server", f"127.0.0.1:{port}", "--clients", clients]
                arguments += ["--states", str(own / "states")]
                nodes.append(_start_node(_parser().parse_args(arguments), rest, own))
            return _server(*_parser().parse_known_args(["server", "--port", port, "--home", str(home), *rest]))
        finally:
            for node in nodes:
                node.tell()
            for node in nodes:
                node.stop()


def _start_node(given: argparse.Namespace, rest: Sequence[str], home: Path) -> Child:
    """Start a SuperNode whose ClientApps are forked from a process that is ready."""
    warm = home / "bin" / "flower-superexec"
    write_whole(warm, f'#!/bin/sh\nexec "{sys.executable}" -m hetfl.cli.flower_warm "$@"\n'.encode())
    warm.chmod(0o755)
    report = home / "report"
    report.unlink(missing_ok=True)
    settings = {
        "arguments": list(rest),
        "clients": given.clients,
        "states": str(Path(given.states).absolute()),
        "folder": os.getcwd(),
        "report": str(report),
    }
    env = environment(home, HETFL_NODE=json.dumps(settings))
    return Child(_supernode(given, rest), home / "supernode.log", env)


def _sleep(seconds: float, received: Sequence[int]) -> None:
    until = time.monotonic() + seconds
    while not received and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


def _supernode(given: argparse.Namespace, rest: Sequence[str]) -> list[str]:
    config = {
        "arguments": shlex.join(rest),
        "clients": given.clients,
        "states": str(Path(given.states).absolute()),
        "folder": os.getcwd(),
    }
    command = ["flower-supernode", "--superlink", given.server, "--host", "127.0.0.1", "--port", str(free_port())]
    command += ["--node-config", " ".join(f'{name}="{value}"' for name, value in config.items())]
    if given.key:
        command += ["--auth-supernode-private-key", str(Path(given.key).absolute())]
    if not given.certificates:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(_certificate(given, "ca.crt"))]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "node.crt"), ("keyfile", "node.key")):
        command += [f"--ssl-{option}", str(_certificate(given, name))]
    return command
