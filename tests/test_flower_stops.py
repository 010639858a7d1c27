"""Commands end soon after SIGTERM in every phase, and leave no process, also if they are killed themselves."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen, TimeoutExpired

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import flower_processes

from hetfl.flower.command.processes import free_port, lives

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")]

STOPS = int(os.environ.get("HETFL_STOPS", "2"))
"""Stops of each command, at instants between its start and its rounds."""
SPAN = float(os.environ.get("HETFL_SPAN", "60"))
"""Seconds after the start in which the last stop may come."""
SLACK = float(os.environ.get("HETFL_SLACK", "2"))
"""Factor of the time limits, for busy machines."""
Start = Callable[[int, Path], Popen[bytes]]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[dict[str, Popen[bytes]]]:
    """Start a node and its server."""
    port = free_port()
    commands = {"node": flower_processes.node(port, tmp_path), "server": flower_processes.server(port, tmp_path)}
    yield commands
    for _ in range(3):  # a server in a round may wait a minute for a node that has gone; a third signal kills
        for command in commands.values():
            command.terminate()
        until = time.monotonic() + 20.0
        for command in commands.values():
            with suppress(TimeoutExpired):
                command.wait(timeout=max(0.1, until - time.monotonic()))
    assert None not in [command.poll() for command in commands.values()]


@pytest.mark.parametrize("stop", range(STOPS))
@pytest.mark.parametrize(("name", "seconds"), [("node", 5.0), ("server", 10.0)])
def test_sigterm_ends_a_command_soon(both: dict[str, Popen[bytes]], name: str, seconds: float, stop: int) -> None:
    """A server in a round ends after the round, which takes few seconds here."""
    time.sleep(random.Random(stop).uniform(0.0, SPAN))
    members = flower_processes.tree(both[name].pid)
    begin = time.monotonic()
    both[name].send_signal(signal.SIGTERM)
    assert both[name].wait(timeout=120) in (0, 143, -signal.SIGTERM)
    assert time.monotonic() - begin < seconds * SLACK
    assert not any(map(lives, members))


@pytest.mark.parametrize("name", ["node", "server"])
def test_a_killed_command_leaves_no_process(both: dict[str, Popen[bytes]], name: str) -> None:
    time.sleep(SPAN / 2)
    members = flower_processes.tree(both[name].pid)
    assert len(members) > 1
    both[name].kill()
    both[name].wait()
    until = time.monotonic() + 10.0 * SLACK
    while any(map(lives, members)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(lives, members))
