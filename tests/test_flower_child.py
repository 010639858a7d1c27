"""Flower's processes end with their parent, and end when their main thread ends."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hetfl.flower.command.child import OnlyNodes, admit_only_nodes
from hetfl.flower.command.processes import CHILD, FlowerProcess, descendants, lives

NODE = '''
import sys, threading, time

def ends():
    print("ends", *sys.argv[1:])
    return 3

def stuck():
    """Behave like a SuperNode that is interrupted twice: its main thread ends, other threads do not."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    raise KeyboardInterrupt
'''


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Install two commands, and return the environment."""
    (tmp_path / "a_node.py").write_text(NODE)
    info = tmp_path / "a_node-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-node\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[console_scripts]\na-node-ends = a_node:ends\na-node-stuck = a_node:stuck\n"
    )
    return {"PYTHONPATH": str(tmp_path)}


def test_a_command_receives_its_arguments_and_returns_its_status(env: dict[str, str], tmp_path: Path) -> None:
    child = FlowerProcess(["a-node-ends", "--port", "7"], tmp_path / "log", env)
    assert child.process.wait(timeout=60) == 3
    assert (tmp_path / "log").read_text() == "ends --port 7\n"


def test_remaining_threads_do_not_keep_the_process_alive(env: dict[str, str], tmp_path: Path) -> None:
    child = FlowerProcess(["a-node-stuck"], tmp_path / "log", env)
    try:
        assert child.process.wait(timeout=60) == 1
    finally:
        child.stop()
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_last_words_are_those_of_this_process(env: dict[str, str], tmp_path: Path) -> None:
    """Logs are appended to: an earlier end had another reason."""
    (tmp_path / "log").write_text("Exit Code: 305 its key is not registered\n")
    child = FlowerProcess(["a-node-ends", "--port", "7"], tmp_path / "log", env)
    child.process.wait(timeout=60)
    assert child.last_words().startswith("ends --port 7 (")


ASGI = {"type": "http", "path": "/v1/control/start-run", "client": ("203.0.113.9", 1), "server": ("192.0.2.1", 9092)}


@pytest.mark.parametrize(
    ("changed", "admitted"),
    [
        ({}, False),
        ({"path": "/v1/runtime/acquire-task"}, False),
        ({"path": "/v1/fleets"}, False),
        ({"client": None}, False),
        ({"client": ("/a/socket", 0)}, False),
        ({"client": ("::ffff:203.0.113.9", 1)}, False),
        ({"path": "/v1/fleet/register-node"}, True),
        ({"path": "/health"}, True),
        ({"client": ("127.0.0.1", 1)}, True),
        ({"client": ("::1", 1)}, True),
        ({"client": ("::ffff:127.0.0.1", 1)}, True),
        ({"client": ("192.0.2.1", 1)}, True),
        ({"type": "lifespan", "path": None, "client": None}, True),
    ],
)
def test_other_machines_reach_only_what_nodes_use(changed: dict[str, Any], admitted: bool) -> None:
    reached, sent = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(OnlyNodes(app)({**ASGI, **changed}, None, send))
    assert (len(reached), [each.get("status") for each in sent]) == ((1, []) if admitted else (0, [403, None]))


def test_the_superlink_admits_only_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    extensions = pytest.importorskip("flwr.superlink.extensions")
    main = pytest.importorskip("flwr.superlink.main")
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    admit_only_nodes()
    assert main._get_middleware()[0].cls is OnlyNodes


def test_a_node_runs_no_code_of_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    warm = pytest.importorskip("hetfl.flower.command.warm")
    runtime = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    for name in ("install_from_fab", "get_load_client_app_fn"):
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    warm.run_only_hetfl()
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    runtime.install_from_fab(b"no archive", skip_prompt=True)
    load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("publisher/app", "1.0.0", "hash") is warm.client_app.client_app
    assert not list(tmp_path.iterdir())


def test_a_module_gets_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "a_module.py").write_text("import sys; print(sys.argv[1:]); sys.exit(4)")
    child = FlowerProcess(["-m", "a_module", "--port", "7"], tmp_path / "log", {"PYTHONPATH": str(tmp_path)})
    assert child.process.wait(timeout=60) == 4
    assert (tmp_path / "log").read_text() == "['--port', '7']\n"


def test_children_in_other_groups_end_too(env: dict[str, str], tmp_path: Path) -> None:
    """Flower's SuperLink puts its SuperExec into a group of its own; this one also ignores SIGTERM."""
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    (tmp_path / "a_module.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}], start_new_session=True)\n"
    )
    parent = FlowerProcess(["-m", "a_module"], tmp_path / "log", env)
    while not (tmp_path / "log").read_text():
        time.sleep(0.05)
    children = descendants(parent.process.pid)
    parent.stop(0.2)
    assert len(children) == 1
    assert not any(map(lives, children))


def test_watching_commands_import_no_pytorch() -> None:
    script = "import hetfl.cli, hetfl.flower.command.main, sys; print({'torch', 'lightning', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_command_does_not_start_after_its_parent_has_ended(env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-P", str(CHILD), "1", "a-node-ends"], env=env, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
