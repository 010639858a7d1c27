"""Memory, messages and times of a federation with a net of 30 million parameters, over the loopback (Linux only).

All clients train the whole net, so these are the largest messages of a net of this size. Memory is sampled: the PSS of
each process, in which a page that processes share counts once. ``growth`` is the peak in the rounds beside the last
sample before the first round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import flower_processes
from flower_processes import HETFL, wait_for
from slow_link import SlowLink

from hetfl.flower.command.processes import free_port

HIDDEN = "[512,1024,2736]"
DENSE = ["--model.uplink.init_args.compressor", "hetfl.compression.Identity"]
SAMPLES = 36
"""Mean samples of a client."""
EVENTS = ("needs", "memory", "served", "late", "lost", "warning", "ended")


class Peaks:
    """Samples the memory of processes in a thread.

    Args:
        commands: by name.
        seconds: between two samples.
        path: of a file that gets all samples.

    Attributes:
        before: MB of each process in the last sample before :meth:`begin`.
        peak: since then the most MB of each process, and when.
        total: the most MB of all processes together.
    """

    def __init__(self, commands: dict[str, Popen[bytes]], seconds: float, path: Path) -> None:
        self._commands, self._seconds, self._path = commands, seconds, path
        self._begun = self._ended = False
        self.before: dict[str, float] = {}
        self.peak: dict[str, tuple[float, str]] = {}
        self.total = 0.0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin to look for peaks."""
        self._begun = True

    def end(self) -> None:
        """End the thread."""
        self._ended = True
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended:
            now, moment = self._sample(), time.strftime("%H:%M:%S", time.gmtime())
            with self._path.open("a") as file:
                file.writelines(f"{moment},{name},{size:.0f}\n" for name, size in now.items())
            if self._begun:
                self.peak |= {name: max((size, moment), self.peak.get(name, (0.0, ""))) for name, size in now.items()}
                self.total = max(self.total, sum(now.values()))
            else:
                self.before = now
            time.sleep(self._seconds)

    def _sample(self) -> dict[str, float]:
        now: dict[str, float] = {}
        for name, command in self._commands.items():
            with contextlib.suppress(OSError, StopIteration):  # a process has ended meanwhile
                now |= {f"{name}: {part}": size for part, size in flower_processes.memory(command.pid).items()}
        return now


def events(folder: Path) -> list[dict[str, Any]]:
    """Return the server's events."""
    path = folder / "events.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def arguments(given: argparse.Namespace, clients: int) -> list[str]:
    """Return the arguments of fit."""
    settings = ["-c", "experiment/flower_digits", "--model.net.init_args.hidden", given.hidden, "--plots", "false"]
    settings += ["--data.num_clients", str(clients), "--final_test", "false", "--model.levels", "{a: {width: 1.0}}"]
    settings += ["--model.assignment", "hetfl.fleet.Fixed", "--model.local.epochs", "1"]
    settings += ["--data.partitioner", "hetfl.data.IID"]
    settings += ["--model.selection.init_args.clients_per_round", str(given.clients)]
    settings += ["--trainer.max_epochs", str(given.rounds)]
    return settings + (DENSE if given.dense else [])


def measure(given: argparse.Namespace, folder: Path, port: int, near: int) -> Peaks:
    """Run a federation; return its memory.

    Args:
        given: the options.
        folder: for its files.
        port: at which the server listens.
        near: to which the nodes connect.
    """
    clients = 1437 // SAMPLES
    rest = arguments(given, clients)
    root = f"--trainer.logger.init_args.root={folder}"
    options = ["--port", str(port), "--home", str(folder / "server"), "--log", str(folder / "events.log")]
    options += ["--json-logs", "--deadline", str(given.deadline)]
    commands = {
        "server": flower_processes.started([*HETFL, "server", *options, *rest, root], folder / "server.log"),
    }
    try:
        for number in range(given.nodes):
            first, last = (clients * each // given.nodes for each in (number, number + 1))
            states, name = folder / f"states{number}", f"node{number}"
            options = ["--clients", f"{first}-{last - 1}", "--server", f"127.0.0.1:{near}"]
            options += ["--states", str(states), "--home", str(folder / name)]
            commands[name] = flower_processes.started([*HETFL, "client", *options, *rest], folder / f"{name}.log")
        peaks = Peaks(commands, given.every, folder / "memory.csv")
        wait_for(lambda: ended(commands) or any(event["event"] == "needs" for event in events(folder)))
        peaks.begin()
        commands["server"].wait()
        peaks.end()
    finally:
        for command in commands.values():
            command.terminate()
            command.wait()
    return peaks


def ended(commands: dict[str, Popen[bytes]]) -> bool:
    """Return whether a command has ended."""
    return any(command.poll() is not None for command in commands.values())


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hidden", default=HIDDEN, help="channels of the ConvNet")
    options.add_argument("--nodes", type=int, default=2)
    options.add_argument("--clients", type=int, default=4, help="of a round")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--dense", action="store_true", help="updates are not compressed")
    options.add_argument("--deadline", type=float, default=600.0, help="of the server, in seconds")
    options.add_argument("--link", type=float, help="kB/s of the nodes' common link, in each direction")
    options.add_argument("--every", type=float, default=0.5, help="seconds between two samples of the memory")
    options.add_argument("--keep", help="folder for logs and runs, which stays")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hetfl-bench-") as temporary:
        folder = Path(given.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        port, near = free_port(), free_port()
        with SlowLink(near, port, 1000 * given.link) if given.link else contextlib.nullcontext():
            peaks = measure(given, folder, port, near if given.link else port)
        for event in events(folder):
            if event["event"] in EVENTS:
                print(f"{event['time']} {event['event']}: {event['node']} {event['text']}")
        print(f"{'peak':>8} {'growth':>8}  {'at':8}  MB of process")
        for name, (size, moment) in sorted(peaks.peak.items()):
            print(f"{size:8.0f} {size - peaks.before.get(name, 0.0):8.0f}  {moment}  {name}")
        print(f"all processes: at most {peaks.total:.0f} MB; {time.monotonic() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
