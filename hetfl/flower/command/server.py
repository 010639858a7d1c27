"""``hetfl flower server``: a SuperLink, and a run of ``hetfl fit`` on it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
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
    require_free,
    wait_until,
)
from hetfl.flower.patience import Patience
from hetfl.signals import taking_signals

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
"""Flower's app: it only imports hetfl, which every machine has installed. No code is sent to nodes."""


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
        _prepare(home, f"[{local}]:{given.port}" if ":" in local else f"{local}:{given.port}", given, patience, rest)
        env = environment(home)
        link = FlowerProcess(_superlink(given), home / "superlink.log", env)
        try:
            wait_until(lambda: bool(received) or listens(local, given.port), link, START_SECONDS)
            for key in sorted(Path(given.node_keys).glob("*.pub")) if given.node_keys else ():
                _flwr(["supernode", "register", str(key.absolute()), CONNECTION], env)
            if not received:
                _flwr(["run", str(home / "app"), CONNECTION], env)
            return _follow(home, link, received, watch)
        finally:
            link.stop()


def _prepare(home: Path, address: str, given: argparse.Namespace, patience: Patience, rest: Sequence[str]) -> None:
    """Write the files that Flower reads: the address of the SuperLink, and the app with its settings."""
    tls = (
        f"root-certificates = {json.dumps(str(certificate(given.certificates, 'ca.crt')))}"
        if given.certificates
        else "insecure = true"
    )
    config = f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{address}"\n{tls}\n'
    settings = {
        "arguments": list(rest),
        "folder": os.getcwd(),
        "output": str(home / "output"),
        "patience": vars(patience),
        "max_norm": given.max_norm,
    }
    package = home / "app" / "hetflapp"
    for path, text in {
        home / "config.toml": config,
        package.parent / "pyproject.toml": APP.replace(
            'settings = ""', f"settings = {json.dumps(json.dumps(settings))}"
        ),
        package / "__init__.py": "",
        package / "server.py": "from hetfl.flower.command.apps import server_app\n\napp = server_app\n",
        package / "client.py": "from hetfl.flower.command.apps import client_app\n\napp = client_app\n",
    }.items():
        write_whole(path, text.encode())
    for name in ("output", "pid", "status"):
        (home / name).unlink(missing_ok=True)


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


def _flwr(args: Sequence[str], env: dict[str, str]) -> None:
    """Run Flower's command ``flwr``.

    Raises:
        ConfigurationError: the command failed.
    """
    done = subprocess.run(["flwr", *args], env=env, capture_output=True, text=True, start_new_session=True, check=False)
    output = " ".join((done.stderr + done.stdout).split())
    if done.returncode:
        raise ConfigurationError(f"Expected flwr {args[0]} to succeed but got: {output[-500:]}")


def _follow(home: Path, link: FlowerProcess, received: Sequence[int], watch: Callable[[], object]) -> int:
    """Print the run's output until it has ended, and pass signals on to it; return its exit status."""
    passed = 0
    output, status, pid = home / "output", home / "status", home / "pid"
    with output.open("a+", encoding="utf-8") as file:
        file.seek(0)
        while not status.is_file():
            _show(file)
            watch()
            if link.process.poll() is not None:
                raise ConfigurationError(f"Expected flower-superlink to go on but it ended: {link.last_words()}")
            if pid.is_file() and not _lives(int(pid.read_text())) and not status.is_file():
                if received:
                    return 128 + received[0]
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
