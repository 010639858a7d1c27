"""What a server's command does at a signal, with refused nodes and with warnings; the files of docs/deployment."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

from hetfl.flower.clients import FlowerClients
from hetfl.flower.command import server
from hetfl.flower.command.client import _reason
from hetfl.flower.command.main import _parser
from hetfl.flower.command.operating import ending_at_once, warnings_as_events
from hetfl.flower.events import LARGEST_EVENT, EventFile, EventLog
from hetfl.flower.messages import ClientAnswer
from hetfl.flower.nodes import Nodes
from hetfl.types import Task
from tests.conftest import small_module
from tests.flower_cases import FakePost

FILES = Path(__file__).parent.parent / "docs" / "deployment"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in the place of a run, which ignores signals as long training does."""
    script = (
        "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "pid").write_text(f"{process.pid}")
        yield process
        process.kill()


def followed(home: Path, received: list[int], watch: Any = lambda: None) -> tuple[int, list[str]]:
    """Return the status of a server's command that follows a run, and its events."""
    shown: list[str] = []
    (home / "superlink.log").touch()
    link: Any = SimpleNamespace(process=SimpleNamespace(poll=lambda: None), log=home / "superlink.log")
    log = EventLog(EventFile(home / "events"), None, as_json=False, show=shown.append)
    status = server._follow(home, link, log, received, watch)
    return status, [line.partition(" ")[2] for line in shown]


def test_a_signal_before_training_ends_the_server_soon(
    tmp_path: Path, run: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 0.5)
    begin = time.monotonic()
    status, events = followed(tmp_path, [signal.SIGTERM])
    assert status == 128 + signal.SIGTERM
    assert events == ["stopping: SIGTERM: training has not begun"]
    assert 0.5 <= time.monotonic() - begin < 5


def test_a_signal_in_training_waits_for_the_round_and_a_third_does_not(
    tmp_path: Path, run: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 0.1)
    (tmp_path / "run").write_text(str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()
    received = [int(signal.SIGTERM)]
    looks: list[int] = []

    def watch() -> None:
        looks.append(len(received))
        if len(looks) in (4, 6):
            received.append(signal.SIGINT)

    status, events = followed(tmp_path, received, watch)
    assert status == 128 + signal.SIGINT
    assert len(looks) == 6
    assert events == ["stopping: SIGTERM", "stopping: SIGINT", "stopping: SIGINT"]
    assert "stopping: SIGTERM" in (tmp_path / "folder" / "server.log").read_text()


def test_nodes_that_the_superlink_refuses_are_reported_once_a_minute(tmp_path: Path) -> None:
    shown: list[str] = []
    path, log = tmp_path / "link.log", EventLog(EventFile(tmp_path / "events"), None, False, shown.append)
    path.write_text("nothing\n")
    refusals = server.Refusals(path, log)
    refusals.look()
    line = "[ApiError:2004] ... b'key', exception: No SuperNode found with the given public key.\n"
    for text in (line, line, "Node could not be activated.\n", ""):
        with path.open("a") as file:
            file.write(text)
        refusals.look()
    path.write_text("")
    refusals.look()
    texts = [each.partition("refused: ")[2] for each in shown]
    assert [text[:40] for text in texts] == [
        "a node whose key is not registered tried",
        "a node tried to join whose key is still ",
    ]


def test_a_line_that_cannot_be_read_is_an_event(tmp_path: Path) -> None:
    """A full disk leaves half a line, and the next event is appended to it."""
    events = EventFile(tmp_path / "events")
    events("joined", "clients 0-4", "one", clients="0," * LARGEST_EVENT)
    with events.path.open("ab") as file:
        file.write(b'{"kind": "jo{"kind": 1}\n')
    events("ended", "with status 0")
    joined, broken, ended = events.take()
    assert (joined.kind, broken.kind, ended.kind) == ("joined", "warning", "ended")
    assert broken.text.startswith("Expected an event but got 23 bytes that cannot be read")
    assert events.take() == []


def test_a_refusal_without_a_reason_is_one() -> None:
    """Else the numbers beside it would be used, which are not checked then."""
    task, module = Task(3, "a", 0, 0, 0.1), small_module()
    clients = FlowerClients(module, Nodes(FakePost({})))
    reply = clients._reply(task, ClientAnswer(3, "refused", "", squared_norm=-1e300))
    assert reply.refusal == "the node gave no reason"


def test_a_node_explains_why_it_was_not_admitted() -> None:
    words = "305 Failed to initialize the connection. [code: 2004] Failed to activate SuperNode."
    assert _reason(words).startswith("its key is not registered at the server (--node_keys), or ")
    assert _reason(words).endswith(words)
    assert _reason("[code: 2001] x").startswith("the server admits only nodes with a registered key: give --key")
    assert _reason("something else") == "something else"


def test_warnings_are_events_without_their_source() -> None:
    said: list[tuple[str, str]] = []
    with warnings_as_events(lambda kind, text, **more: said.append((kind, text))):
        warnings.simplefilter("always")
        warnings.warn("Round 1: no update of client 5: gone", stacklevel=1)
    assert said == [("warning", "Round 1: no update of client 5: gone")]


def test_a_signal_outside_of_training_ends_the_run_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, ending_at_once():
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["hetfl-server.service", "hetfl-node.service"])
def test_units_for_systemd_have_options_of_the_commands(name: str) -> None:
    text = (FILES / name).read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    words = shlex.split(command)
    assert words[:2] == ["/opt/hetfl/bin/hetfl", "flower"]
    given, rest = _parser().parse_known_args(words[2:])
    assert rest == ["-c", "/etc/hetfl/run.yaml"]
    assert given.home == "/var/lib/hetfl/home"
