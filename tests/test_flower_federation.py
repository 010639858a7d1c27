"""Federations of real processes over the loopback: Flower's SuperLink, SuperNodes, and our commands around them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import pandas as pd
import torch

from hetfl.cli import FederatedCLI
from hetfl.cli.flower_processes import free_port
from hetfl.cli.starting import start
from hetfl.federation.clients import Clients, Lost

pytestmark = pytest.mark.slow

DEPLOYMENT = Path(__file__).parent.parent / "docs" / "deployment.md"
CONFIG = Path(__file__).parent.parent / "configs" / "experiment" / "flower_digits.yaml"
NODES = {0: "0-2", 1: "3-5", 2: "6-8"}
HETFL = str(Path(sys.executable).parent / "hetfl")
SMALL = ["--plots", "false", "--final_test", "false", "--model.net.init_args.hidden", "[16,32]"]


def args(folder: Path, *more: str) -> list[str]:
    return ["-c", str(CONFIG), f"--trainer.logger.init_args.root={folder}", *SMALL, *more]


class Federation:
    """A server and its nodes, each a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, name: str, command: Sequence[str]) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [HETFL, "flower", *command], stdout=log, stderr=log, env=env, start_new_session=True
            )

    def server(self, *more: str, settings: Sequence[str] = (), name: str = "server") -> None:
        own = ["server", "--port", str(self.port), "--home", str(self.folder / name)]
        self.command(name, [*own, *more, *(settings or args(self.folder))])

    def node(self, number: int, *more: str, settings: Sequence[str] = ()) -> None:
        own = ["client", "--clients", NODES[number], "--server", f"127.0.0.1:{self.port}"]
        own += ["--states", str(self.folder / f"states{number}"), "--home", str(self.folder / f"node{number}")]
        self.command(f"node{number}", [*own, *more, *(settings or args(self.folder))])

    def log(self, name: str = "server") -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, text: str, seconds: float = 240, name: str = "server") -> None:
        until = time.monotonic() + seconds
        while not re.search(text, self.log(name)):
            assert time.monotonic() < until, f"no {text!r} in {self.log(name)}"
            time.sleep(0.1)

    def end(self, name: str = "server", seconds: float = 600) -> int:
        return self.processes[name].wait(timeout=seconds)

    def kill(self, name: str) -> None:
        """Kill -9 what carries a part, with all its children: the cover that we started stays."""
        for pid in descendants(self.processes[name].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(timeout=60)


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    try:
        yield made
    finally:
        made.close()
        assert not left_behind(made.port), "processes of the federation are still there"


def left_behind(port: int) -> list[str]:
    lines = subprocess.run(["ps", "-ewwo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if re.search(rf"(:|port ){port}\b", line) and " Z" not in line[:16]]


def run_of(folder: Path) -> Path:
    (run,) = folder.glob("flower_digits/*")
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]  # noqa: TID251
    return found


class Without(Clients):
    """Clients in one process of which some updates are lost."""

    def __init__(self, inner: Clients, lost: set[tuple[int, int]]) -> None:
        self.inner, self.lost = inner, lost

    def train(self, tasks: Any) -> Any:
        there = iter(self.inner.train([task for task in tasks if (task.round, task.client) not in self.lost]))
        for task in tasks:
            yield Lost(task, "as before") if (task.round, task.client) in self.lost else next(there)

    def run(self, job: Any, tasks: Any) -> Any:
        return self.inner.run(job, tasks)

    def take(self, upload: Any, update: Any) -> None:
        self.inner.take(upload, update)


class Replay(FederatedCLI):
    """A run in one process with the same updates lost as in a run on Flower."""

    def __init__(self, *args: Any, lost: set[tuple[int, int]], **kwargs: Any) -> None:
        self.lost = lost
        super().__init__(*args, **kwargs)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.model.clients = Without(self.model.clients, self.lost)


def replayed(folder: Path, log: str, *more: str) -> Path:
    lost = {(int(round), int(client)) for round, client in re.findall(r"Round (\d+): no update of client (\d+)", log)}
    start(["fit", *args(folder / "replay", *more)], cli=partial(Replay, lost=lost))
    return run_of(folder / "replay")


def same(one: Path, two: Path) -> bool:
    first, second = weights(one), weights(two)
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_three_nodes_give_the_bits_of_one_process(federation: Federation) -> None:
    for number in NODES:
        federation.node(number)
    federation.server()
    assert federation.end() == 0, federation.log()
    alone = replayed(federation.folder, federation.log())
    run = run_of(federation.folder)
    assert same(run, alone)
    pd.testing.assert_frame_equal(
        pd.read_csv(run / "metrics.csv"), pd.read_csv(alone / "metrics.csv"), check_exact=True
    )


@pytest.mark.filterwarnings("ignore:Round:UserWarning")
def test_a_killed_node_comes_back_and_its_clients_go_on_from_what_was_accepted(federation: Federation) -> None:
    kills, rounds = int(os.environ.get("HETFL_KILLS", "2")), 3 + 4 * int(os.environ.get("HETFL_KILLS", "2"))
    settings = args(federation.folder, f"--trainer.max_epochs={rounds}", "--trainer.limit_val_batches=0")
    for number in NODES:
        federation.node(number, settings=settings)
    federation.server("--deadline", "30", settings=settings)
    for kill in range(kills):
        federation.wait_for(f"round {2 + 4 * kill}/")
        time.sleep(0.5 * kill % 4)
        federation.kill(f"node{kill % 3}")
    assert federation.end() == 0, federation.log()
    assert same(run_of(federation.folder), replayed(federation.folder, federation.log(), *settings[3 + len(SMALL) :]))


def test_a_killed_server_goes_on_as_a_new_run_with_the_same_states(federation: Federation) -> None:
    for number in NODES:
        federation.node(number)
    federation.server()
    federation.wait_for("round 2/")
    time.sleep(2)
    federation.kill("server")
    assert federation.end() != 0
    run = run_of(federation.folder)
    federation.server(
        settings=["-c", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")], name="again"
    )
    assert federation.end("again") == 0, federation.log("again")
    alone = replayed(federation.folder, federation.log() + federation.log("again"))
    assert same(run, alone)
    pd.testing.assert_frame_equal(
        pd.read_csv(run / "metrics.csv"), pd.read_csv(alone / "metrics.csv"), check_exact=True
    )


def test_ctrl_c_ends_a_run_at_its_rounds_end_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("hetfl-flower-*"))
    command = [HETFL, "flower", "demo", *(part for each in NODES.values() for part in ("--clients", each))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen([*command, *args(tmp_path)], stdout=log, stderr=log, env=env, start_new_session=True)
        until = time.monotonic() + 240
        while "round 1/" not in (tmp_path / "log").read_text():
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.2)
        port = re.search(r"--port (\d+)", " ".join(left_behind_lines("flower-superlink")))
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=120) == 130
    assert port is not None
    assert not left_behind(int(port[1]))
    assert set(Path("/tmp").glob("hetfl-flower-*")) == before
    assert len(pd.read_csv(run_of(tmp_path) / "metrics.csv")) in (1, 2)


def left_behind_lines(name: str) -> list[str]:
    lines = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if name in line]


@pytest.mark.skipif(not shutil.which("openssl") or not shutil.which("ssh-keygen"), reason="makes certificates and keys")
def test_only_nodes_with_a_registered_key_and_the_right_ca_join(federation: Federation) -> None:
    """With certificates and keys made by the commands of docs/deployment.md."""
    folder = federation.folder
    (commands,) = re.findall(r"```sh\n(mkdir tls.*?)```", DEPLOYMENT.read_text(), re.DOTALL)
    for name in ("own", "other"):
        (folder / name).mkdir()
        subprocess.run(["bash", "-ec", commands], cwd=folder / name, check=True, capture_output=True)
    tls, keys = ["--certificates", str(folder / "own/tls")], folder / "own/keys"
    settings = args(folder, "--trainer.max_epochs=1")
    federation.server(*tls, "--node_keys", str(keys), "--start", "60", settings=settings)
    federation.node(0, *tls, "--key", str(keys / "one"), settings=settings)
    federation.node(1, *tls, "--key", str(folder / "other/keys/one"), settings=settings)  # nobody knows this key
    federation.node(2, "--certificates", str(folder / "other/tls"), "--key", str(keys / "two"), settings=settings)
    plain = [
        "client",
        "--clients",
        "3-5",
        "--server",
        f"127.0.0.1:{federation.port}",
        "--states",
        str(folder / "plain"),
    ]
    federation.command("in the clear", [*plain, *settings])
    assert federation.end() == 0, federation.log()
    assert re.search(r"No node serves clients \[3, 4, 5, 6, 7, 8\]", federation.log())
    assert "305 Failed to initialize" in federation.log("node1")
    assert "CERTIFICATE_VERIFY_FAILED" in federation.log("node2")
