"""Flower's SuperExec with a node that is already made: ClientApps are forked from this process.

Flower starts a process for every message. Importing PyTorch and reading the configuration each time would take longer
than a small client's training. So our SuperNodes use this module as their ``flower-superexec``: it makes the node once,
before PyTorch starts any thread, and forks a process per message.
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

from hetfl.cli.one_line import command_line
from hetfl.files import write_whole
from hetfl.flower.command import apps
from hetfl.flower.command.checks import numbers
from hetfl.reading import LARGEST_TEXT, parse_json


def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
    """Fork a process that runs Flower's ``flwr-clientapp``."""
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
    """Handle one message in a forked process, and end the process."""
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
    """Make the node, then run Flower's SuperExec."""
    os.environ["HETFL_THREADS"] = str(torch.get_num_threads())
    torch.set_num_threads(1)  # a fork does not copy OpenMP's threads, and would wait for them
    given: dict[str, Any] = parse_json(os.environ["HETFL_NODE"], LARGEST_TEXT)
    os.chdir(given["folder"])
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), command_line():
            clients = numbers(given["clients"])
            apps.node = apps.make_node(given["arguments"], clients, given["states"])
    except SystemExit:  # write the report: Flower's SuperNode goes on without this process, and answers no message
        write_whole(Path(given["report"]), errors.getvalue().encode())
        raise
    write_whole(Path(given["report"]), b"")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # this process never waits for its children: leave no zombies
    SubprocessExecutor.launch = launch  # type: ignore[method-assign]
    flower_superexec()


if __name__ == "__main__":
    main()
