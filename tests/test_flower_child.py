"""Flower's processes end with their parent, and end when their main thread ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hetfl.flower.command.processes import CHILD, FlowerProcess

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


def test_a_command_does_not_start_after_its_parent_has_ended(env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-P", str(CHILD), "1", "a-node-ends"], env=env, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
