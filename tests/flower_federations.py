"""Federations of real processes for tests, and the comparison of their results with a run in one process."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch

from hetfl.cli import FederatedCLI
from hetfl.cli.starting import start
from hetfl.federation.clients import Clients
from hetfl.flower.bound import ServerBound
from hetfl.flower.command.processes import free_port
from hetfl.schedule import Reply

CONFIG = Path(__file__).parent.parent / "configs" / "experiment" / "flower_digits.yaml"
NODES = {0: "0-2", 1: "3-5", 2: "6-8"}
HETFL = str(Path(sys.executable).parent / "hetfl")
SECONDS = float(os.environ.get("HETFL_SECONDS", "600"))
"""Longest wait for a federation, for busy machines."""
SMALL = ["--plots", "false", "--final_test", "false", "--model.net.init_args.hidden", "[16,32]"]


def args(folder: Path, *more: str) -> list[str]:
    return ["-c", str(CONFIG), f"--trainer.logger.init_args.root={folder}", *SMALL, *more]


class Federation:
    """A server and its nodes; each runs in a separate process group."""

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
        arguments = ["server", "--port", str(self.port), "--home", str(self.folder / name)]
        self.command(name, [*arguments, *more, *(settings or args(self.folder))])

    def node(self, number: int, *more: str, settings: Sequence[str] = ()) -> None:
        arguments = ["client", "--clients", NODES[number], "--server", f"127.0.0.1:{self.port}"]
        arguments += ["--states", str(self.folder / f"states{number}"), "--home", str(self.folder / f"node{number}")]
        self.command(f"node{number}", [*arguments, *more, *(settings or args(self.folder))])

    def log(self, name: str = "server") -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for_rounds(self, count: int, name: str = "server", seconds: float = SECONDS) -> None:
        """Wait until ``count`` rounds are in ``metrics.csv``; the terminal output skips some rounds."""
        until = time.monotonic() + seconds
        while sum(map(rounds_of, self.folder.glob("flower_digits/*"))) < count:
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < until, f"less than {count} rounds: {self.log(name)}"
            time.sleep(0.1)

    def end(self, name: str = "server", seconds: float = SECONDS) -> int:
        return self.processes[name].wait(timeout=seconds)

    def kill(self, name: str) -> None:
        """Kill the processes below a command's wrapper process with SIGKILL; the wrapper itself keeps running."""
        for pid in descendants(self.processes[name].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(timeout=60)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Federation]:
    """Yield a federation, close it at the end, and check that no process remains."""
    federation = Federation(folder)
    try:
        yield federation
    finally:
        federation.close()
        assert not left_behind(federation.port), "processes of the federation remain"


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    pids = list(children.get(pid, ()))
    for child in pids:
        pids += children.get(child, ())
    return pids


def left_behind(port: int) -> list[str]:
    lines = subprocess.run(["ps", "-ewwo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if re.search(rf"(:|port ){port}\b", line) and " Z" not in line[:16]]


def run_of(folder: Path) -> Path:
    (run,) = folder.glob("flower_digits/*")
    return run


class LossyClients(Clients):
    """Clients in one process; the listed updates are lost."""

    def __init__(self, inner: Clients, lost: set[tuple[int, int]]) -> None:
        self.inner, self.lost = inner, lost

    def train(self, tasks: Any) -> Any:
        replies = iter(self.inner.train([task for task in tasks if (task.round, task.client) not in self.lost]))
        for task in tasks:
            yield Reply(task, lost="as before") if (task.round, task.client) in self.lost else next(replies)

    def run(self, job: Any, tasks: Any) -> Any:
        return self.inner.run(job, tasks)

    def take(self, upload: Any, update: Any) -> None:
        self.inner.take(upload, update)


class Replay(FederatedCLI):
    """A run in one process in which the same updates are lost as in a run on Flower."""

    def __init__(self, *args: Any, lost: set[tuple[int, int]], **kwargs: Any) -> None:
        self.lost = lost
        super().__init__(*args, **kwargs)

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        self.model.clients = LossyClients(self.model.clients, self.lost)
        self.model.hooks.append(ServerBound(None))


def rounds_of(run: Path) -> int:
    """Return the number of rounds in a run's metrics.csv."""
    metrics = run / "metrics.csv"
    return max(0, metrics.read_text().count("\n") - 1) if metrics.is_file() else 0


def replayed(folder: Path, logs: Mapping[int, str], *more: str) -> Path:
    """Return the folder of a run in this process that accepts the same updates as the server of some logs."""
    start(["fit", *args(folder / "replay", *more)], cli=partial(Replay, lost=lost_updates(logs)))
    return run_of(folder / "replay")


def lost_updates(logs: Mapping[int, str]) -> set[tuple[int, int]]:
    """Return round and client of the updates that the server did not accept, but for those above its bound.

    Args:
        logs: server logs in order, by the first round of each server. Of a round that a server repeated, the last
            repetition counts.
    """
    lost: set[tuple[int, int]] = set()
    for first, log in logs.items():
        lost = {each for each in lost if each[0] < first}
        refusals = re.findall(
            r"Round (\d+): (?:no )?update of client (\d+)(?:: | at level \S+ refused: (?!Expected a norm))", log
        )
        lost |= {(int(round) - 1, int(client)) for round, client in refusals}
    return lost


def checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # noqa: TID251
    return content


def assert_same_end(run: Path, alone: Path, states: Path) -> None:
    """Compare a run on Flower with one in one process bit for bit: weights, metrics, and every client's residual.

    Args:
        run: folder of the run on Flower.
        alone: folder of the run in one process.
        states: folder with the state folders of the nodes.
    """
    one, two = checkpoint(run), checkpoint(alone)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    metrics, others = (pd.read_csv(each / "metrics.csv") for each in (run, alone))
    pd.testing.assert_frame_equal(metrics, others, check_exact=True)
    book, expected = one["hetfl"]["pieces"]["clients"], two["hetfl"]["pieces"]["uplink"]
    rounds = dict(expected["rounds"].tolist())
    assert sorted(book["clients"]) == sorted(expected["residuals"]["blocks"])
    for client, state in zip(book["clients"], book["states"], strict=True):
        path = f"states*/{book['federation']}/client-{client}-round-{rounds[client]}-{state}.safetensors"
        (file,) = states.glob(path)
        assert_same_residual(file, expected["residuals"]["blocks"][client])


def assert_same_residual(file: Path, expected: dict[str, torch.Tensor]) -> None:
    residual = safetensors.torch.load_file(file)
    assert residual.keys() == {f"residual/{name}" for name in expected}, file
    for name, block in expected.items():
        kept = residual[f"residual/{name}"]
        assert (kept.dtype, kept.shape) == (block.dtype, block.shape), (file, name)
        assert kept.numpy().tobytes() == block.contiguous().numpy().tobytes(), (file, name)
