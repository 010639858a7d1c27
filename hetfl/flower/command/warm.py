"""Flower's SuperExec, with a node that is ready: ClientApps are forked from this process.

Flower starts a process for every message. Importing PyTorch and reading the configuration each time would take longer
than a small client's training, so a SuperNode of ours finds this module as its ``flower-superexec``: it makes the node
once, before any thread of PyTorch is started, and forks.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TASK_TYPE_TO_APPIO_API_ADDRESS_ARG, TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor
from flwr.supernode.cli import flwr_clientapp

from hetfl.cli.starting import command_line
from hetfl.files import write_whole
from hetfl.flower.command import apps
from hetfl.flower.command.checks import numbers
from hetfl.reading import LARGEST_TEXT, parse_json


def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
    """Fork a process that is Flower's ``flwr-clientapp``."""
    if spec.task_type != TaskType.CLIENT_APP:
        return LaunchResult.failed(f"Expected a ClientApp but got {spec.task_type}")
    args = [TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type], spec.runtime_api_address, "--token", spec.token]
    if spec.insecure:
        args += ["--insecure"]
    elif spec.root_certificates_path is not None:
        args += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        args += ["--parent-pid", str(spec.parent_pid)]
    if os.fork() == 0:
        _become_app(args)
    return LaunchResult.accepted()


def _become_app(args: list[str]) -> None:
    """Be the process of one message, to its end."""
    status = 1
    try:
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        torch.set_num_threads(int(os.environ["HETFL_THREADS"]))
        sys.argv = ["flwr-clientapp", *args]
        flwr_clientapp()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Make the node, then be Flower's SuperExec."""
    os.environ["HETFL_THREADS"] = str(torch.get_num_threads())
    torch.set_num_threads(1)  # threads of OpenMP would not come along into a fork, which then waits for them
    given: dict[str, Any] = parse_json(os.environ["HETFL_NODE"], LARGEST_TEXT)
    os.chdir(given["folder"])
    said = io.StringIO()
    try:
        with redirect_stderr(said), command_line():
            clients = numbers(given["clients"])
            apps.node = apps.make_node(given["arguments"], clients, given["states"])
    except SystemExit:  # Flower's SuperNode would go on without us, and answer nobody
        write_whole(Path(given["report"]), said.getvalue().encode())
        raise
    write_whole(Path(given["report"]), b"")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked: they leave no zombies
    SubprocessExecutor.launch = launch  # type: ignore[method-assign]
    flower_superexec()


if __name__ == "__main__":
    main()
