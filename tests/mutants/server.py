"""A process in a copy of the project that preloads slow imports, and forks for each request.

It reads one line of JSON per request from standard input, and writes one line as the answer. It never imports hetfl;
each fork imports hetfl from the current files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.mutants.plugins import Chosen, Recorder

OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0", "--no-header", "--tb=short")
TO_IMPORT = 300.0
"""Seconds within which the first test must begin."""
FACTOR = 10.0
"""A test counts as endless after this factor times its usual duration, plus the patience of the request in seconds."""
MOST_MEMORY = 12 << 30
"""Memory limit of a fork in bytes."""


def main() -> None:
    """Serve requests until the input ends; the arguments are modules to preload if they are installed."""
    signal.signal(signal.SIGTERM, leave)
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)  # other output of the process goes to standard error
    while request := _line():
        os.write(answers, json.dumps(_served(request)).encode() + b"\n")


def leave(signum: int, frame: FrameType | None) -> None:
    """End the process through its ``finally`` clauses; ignore a second signal, which process groups often receive."""
    signal.signal(signum, signal.SIG_IGN)
    sys.exit(128 + signum)


def _line() -> dict[str, Any]:
    """Return the next request; an empty dictionary at the end of the input."""
    data = b""
    while not data.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            return {}
        data += piece
    request: dict[str, Any] = json.loads(data)
    return request


def _served(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run pytest in a fork, and return the outcome."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(request, writing)
    os.close(writing)
    watch = _Watch(reading, request)
    try:
        watch.follow(child)
    finally:
        status = _ended(child)
        os.close(reading)
    return {"outcome": watch.outcome or _outcome(status), "test": watch.test, "ran": watch.ran}


def _ended(child: int) -> int:
    """End a fork and the processes that it has started; return its exit status."""
    for end in (os.killpg, os.kill):  # the fork may not be a group leader yet
        with contextlib.suppress(ProcessLookupError):
            end(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return status


def _outcome(status: int) -> str:
    if os.WIFSIGNALED(status):
        return "crashed"
    return {0: "passed", 1: "failed", 5: "passed"}.get(os.WEXITSTATUS(status), "broken")


class _Watch:
    """Reads the messages of a fork until it ends or exceeds its time.

    Attributes:
        outcome: "endless" if the fork exceeded its time, "failed" if a test failed, else "".
        test: the last test that began.
        ran: number of tests that began.
    """

    def __init__(self, pipe: int, request: Mapping[str, Any]) -> None:
        self._pipe, self._seconds = pipe, request.get("seconds", {})
        self._limit, self._patience = request.get("limit", TO_IMPORT), request.get("patience", 0.0)
        self.outcome, self.test, self.ran = "", "", 0

    def follow(self, child: int) -> None:
        """Return when the fork has ended or must be ended."""
        end = os.pidfd_open(child)  # processes started by the fork may keep the pipe open
        data, until = b"", time.monotonic() + self._limit
        try:
            while not self.outcome:
                ready, _, _ = select.select([self._pipe, 0, end], [], [], max(0.0, until - time.monotonic()))
                if 0 in ready and not os.read(0, 1):
                    raise SystemExit("the input has ended")
                if self._pipe in ready:
                    *lines, data = (data + os.read(self._pipe, 1 << 16)).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
                        until = time.monotonic() + self._patience + FACTOR * self._seconds.get(self.test, 0.0)
                elif not ready:
                    self.outcome = "endless"
                if end in ready and (self._pipe not in ready or not data):
                    return
        finally:
            os.close(end)

    def _take(self, message: Mapping[str, str]) -> None:
        if "failed" in message:
            self.test, self.outcome = message["failed"], "failed"
        else:
            self.test, self.ran = message["begins"], self.ran + 1


def _run(request: Mapping[str, Any], report: int) -> None:
    """Run pytest in this process, which is a fork, and end the process."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(request["log"], "wb") as log:  # noqa: PTH123
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    code = 3
    try:
        root = Path.cwd()
        plugin: object
        if "tests" in request:
            plugin = Chosen(request["tests"], report)
        else:
            plugin = Recorder(root, request["paths"], Path(request["out"]))
        arguments = [*request["files"], *OPTIONS, f"--basetemp={request['temporary']}"]
        code = int(pytest.main(arguments, plugins=[plugin]))
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
