"""Flower's SuperExec with a node that is already made: ClientApps are forked from this process.

Flower starts a process for every message. Importing PyTorch and reading the configuration each time would take longer
than a small client's training. So ``hetfl flower client`` runs this module instead of ``flower-superexec``: it makes
the node once, before PyTorch starts any thread, and forks a process per message. It outlives the SuperNode, which is
started again whenever the server is.

It calls the functions behind Flower's commands: the modules of the commands import databases and servers.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import signal
import socket
import sys
import time
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supercore.superexec.run_superexec import run_superexec
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supercore.utils import disable_process_dumping
from flwr.supernode.runtime.run_clientapp import run_clientapp

from hetfl.cli.one_line import command_line
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.flower.command import client_app
from hetfl.flower.command.checks import numbers
from hetfl.flower.command.operating import end_with_parent, events_of
from hetfl.flower.events import Reporter
from hetfl.flower.limits import megabytes, node_memory, report_memory
from hetfl.flower.node import Node
from hetfl.local.forks import fork_refusal
from hetfl.reading import LARGEST_TEXT, parse_json

LOOK_SECONDS = 0.05
"""Seconds between two looks at the SuperNode's log, which grows when a message arrives."""
ASK_SECONDS = 1.0
"""Seconds after which the SuperNode is asked for a message, whatever its log says; asking costs more than looking."""
SOON_SECONDS, SOON = 0.1, 3.0
"""Seconds between two questions, and for how long, after the log has grown: a message takes time to arrive."""


class Waiting:
    """Waits until the SuperNode may have a message.

    Args:
        log: the SuperNode's log.
        pid: file with the SuperNode's process number.
        address: the SuperNode's, such as ``127.0.0.1:9094``.
    """

    def __init__(self, log: Path, pid: Path, address: str) -> None:
        self._log, self._pid, self._size, self._grown = log, pid, -1, 0.0
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))

    def supernode(self) -> int | None:
        """Return the SuperNode's process number; None: there is no SuperNode."""
        with suppress(OSError, ValueError):
            return int(self._pid.read_text())
        return None

    def wait(self) -> None:
        """Wait until the log has grown, or some time has passed; then until the SuperNode listens."""
        now = time.monotonic()
        until = now + (SOON_SECONDS if now - self._grown < SOON else ASK_SECONDS)
        while time.monotonic() < until and self._bytes() == self._size:
            time.sleep(LOOK_SECONDS)
        if (size := self._bytes()) != self._size:
            self._size, self._grown = size, time.monotonic()
        while not self._listens():
            time.sleep(LOOK_SECONDS)

    def _bytes(self) -> int:
        with suppress(OSError):
            return self._log.stat().st_size
        return 0

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(self._address, timeout=1):
            return True
        return False


waiting: Waiting
"""Of this process."""


def reconcile(self: SubprocessExecutor) -> None:
    """Wait; Flower's loop calls this before it asks the SuperNode."""
    waiting.wait()


def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
    """Fork a process that runs a ClientApp as Flower's ``flwr-clientapp`` does, and ends with the SuperNode."""
    if spec.task_type != TaskType.CLIENT_APP:
        return LaunchResult.failed(f"Expected a ClientApp but got {spec.task_type}")
    if os.fork() == 0:
        _become_app(spec)
    return LaunchResult.accepted()


def run_only_hetfl() -> None:
    """Let Flower run the installed ClientApp of hetfl in this process, whatever app the server sends.

    Flower would unpack the server's app and import its code, so that a server could run any code on its nodes.
    """
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    for name, replacement in (
        ("install_from_fab", lambda *_, **__: None),
        ("get_load_client_app_fn", lambda *_, **__: lambda *_: client_app.client_app),
    ):
        getattr(runtime, name)  # a version of Flower without it would run the server's code
        setattr(runtime, name, replacement)


def _become_app(spec: ExecutionSpec) -> None:
    """Handle one message in a forked process, and end the process."""
    status = 1
    try:
        end_with_parent()
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        torch.set_num_threads(int(os.environ["HETFL_THREADS"]))
        run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=waiting.supernode(),
        )
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _report_needs(node: Node, report: Reporter) -> None:
    """Report the memory that a round may take beside that of this process."""
    first, further = node_memory(node.module)
    text = f"a client takes up to {megabytes(first)} of memory here, each further one of a round {megabytes(further)}"
    report("needs", text, node.name)
    report_memory(report, first, node.name)


def main() -> None:
    """Make the node, then run Flower's SuperExec."""
    global waiting
    os.environ["HETFL_THREADS"] = str(torch.get_num_threads())
    torch.set_num_threads(1)  # a fork does not copy OpenMP's threads, and would wait for them
    given: dict[str, Any] = parse_json(os.environ["HETFL_NODE"], LARGEST_TEXT)
    os.chdir(given["folder"])
    errors = io.StringIO()
    report, home = Path(given["report"]), Path(given["home"])
    try:
        with redirect_stderr(errors), command_line():
            clients, events = numbers(given["clients"]), events_of(home)
            node = client_app.make_node(given["arguments"], clients, given["states"], given["name"], events)
            if refusal := fork_refusal():
                raise ConfigurationError(f"Expected a node whose forks can train but got {refusal}")
    except SystemExit:  # the watching command reads the reason
        write_whole(report, errors.getvalue().encode())
        raise
    client_app.node = node
    _report_needs(node, events)
    waiting = Waiting(Path(given["log"]), home / "supernode.pid", given["address"])
    gc.collect()
    gc.freeze()  # collections in forks would touch, and so copy, all objects of this process
    write_whole(report, b"")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # this process never waits for its children: leave no zombies
    run_only_hetfl()
    SubprocessExecutor.launch = launch  # type: ignore[method-assign]
    SubprocessExecutor.reconcile = reconcile  # type: ignore[method-assign]
    disable_process_dumping(strict=False)
    certificates = given["root_certificates"]
    run_superexec(given["address"], insecure=certificates is None, root_certificates_path=certificates)


if __name__ == "__main__":
    main()
