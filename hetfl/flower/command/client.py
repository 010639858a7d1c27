"""``hetfl flower client``: keeps a SuperNode running."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.flower.command.checks import check_client, own_folder
from hetfl.flower.command.processes import POLL_SECONDS, FlowerProcess, certificate, environment, free_port, home_folder
from hetfl.signals import taking_signals

RETRY_SECONDS = 5.0
"""Seconds before a SuperNode that ended is started again: the SuperLink still takes it for alive for a while."""


def run_client(given: argparse.Namespace, rest: Sequence[str]) -> int:
    """Keep a SuperNode running until a signal arrives; return the exit status."""
    check_client(given)
    with home_folder(given.home) as home, own_folder(home), taking_signals() as received:
        while not received:
            node = start_node(given, rest, home)
            try:
                _watch_node(given, node, home / "report", received)
            finally:
                node.stop()
            if not received:
                sys.stderr.write(f"hetfl: flower-supernode ended, starting it again: {node.last_words()}\n")
                _sleep(RETRY_SECONDS, received)
        return 0 if received[0] == signal.SIGTERM else 128 + received[0]


def _watch_node(given: argparse.Namespace, node: FlowerProcess, report: Path, received: Sequence[int]) -> None:
    """Wait until a SuperNode ends or a signal arrives, and print a line when the node is ready.

    Raises:
        ConfigurationError: a setting of the node is invalid.
    """
    ready = False
    while not received and node.process.poll() is None:
        if not ready and is_made(report):
            ready = True
            print(f"node of clients {given.clients} is made; it answers the server at {given.server}", flush=True)
        time.sleep(POLL_SECONDS)


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


def start_node(given: argparse.Namespace, rest: Sequence[str], home: Path) -> FlowerProcess:
    """Start a SuperNode whose ClientApps are forked from a process that has already made the node."""
    warm = home / "bin" / "flower-superexec"
    write_whole(warm, f'#!/bin/sh\nexec "{sys.executable}" -m hetfl.flower.command.warm "$@"\n'.encode())
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
    return FlowerProcess(_supernode(given, rest), home / "supernode.log", env)


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
    command += ["--root-certificates", str(certificate(given.certificates, "ca.crt"))]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "node.crt"), ("keyfile", "node.key")):
        command += [f"--ssl-{option}", str(certificate(given.certificates, name))]
    return command
