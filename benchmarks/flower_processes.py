"""Memory, idle load and stops of the processes of ``hetfl flower client`` and ``server`` (Linux only).

A page that processes share counts once (PSS). The baseline is a process that imports torch and Flower's client.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hetfl.flower.command.processes import descendants, free_port, lives

HETFL = [sys.executable, "-c", "import sys; from hetfl.cli import main; sys.exit(main())", "flower"]
BARE = "import torch, flwr.supernode.cli, time; {}; print(flush=True); time.sleep(600)"
TRAINING = "p = torch.nn.Parameter(torch.zeros(1)); torch.optim.SGD([p], lr=0.1)"
"""What every client does that trains: torch's first optimizer imports torch's compiler."""
SETTINGS = ["-c", "experiment/flower_digits", "--model.net.init_args.hidden", "[8,16]", "--plots", "false"]
SETTINGS += ["--final_test", "false", "--trainer.max_epochs", "1000"]
PAGE = os.sysconf("SC_CLK_TCK")
START_SECONDS = 600.0


def started(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process group with one thread per process."""
    with log.open("ab") as file:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)


def node(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a node of all clients."""
    options = ["--clients", "0-8", "--server", f"127.0.0.1:{port}", "--states", str(folder / "states")]
    return started([*HETFL, "client", *options, "--home", str(folder / "node"), *SETTINGS], folder / "node.log")


def server(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a server."""
    root = f"--trainer.logger.init_args.root={folder}"
    options = ["--port", str(port), "--home", str(folder / "server"), "--log", str(folder / "events.log")]
    return started([*HETFL, "server", *options, *SETTINGS, root], folder / "server.log")


def tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    return [pid, *descendants(pid)]


def memory(pid: int) -> dict[str, float]:
    """Return the PSS of a process and its descendants in MB, by the process's command."""
    sizes: dict[str, float] = {}
    for each in tree(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):  # it has ended, or is a zombie
            continue
        size = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        words = Path(f"/proc/{each}/cmdline").read_text().split("\0")
        if each != pid and words == [""]:  # it ends
            continue
        names = (
            "hetfl.flower.command.warm",
            "flower-supernode",
            "flower-superlink",
            "flower-superexec",
            "flwr-serverapp",
        )
        name = next((name for name in names if any(word.endswith(name) for word in words)), "watching command")
        sizes[name] = sizes.get(name, 0.0) + size / 1000
    return sizes


def processor(pid: int) -> float:
    """Return the processor seconds of a process and its descendants."""
    total = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / PAGE


def wait_for(ready: Callable[[], bool]) -> None:
    """Wait until something is so.

    Raises:
        TimeoutError: it takes too long.
    """
    until = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"Expected a process to be ready within {START_SECONDS:g} s")
        time.sleep(0.1)


def bare(work: str) -> float:
    """Return the PSS in MB of a process that does some work after the imports."""
    with subprocess.Popen([sys.executable, "-c", BARE.format(work)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        size = sum(memory(process.pid).values())
        process.kill()
    return size


def sizes(folder: Path, seconds: float) -> None:
    """Print the memory and the load of a node that waits for a server, and of a server in its rounds."""
    base, port = bare("pass"), free_port()
    print(f"bare process: {base:.0f} MB, with an optimizer: {bare(TRAINING):.0f} MB")
    one = node(port, folder)
    wait_for(lambda: "unreachable" in (folder / "node.log").read_text())
    shown(memory(one.pid), base, f"node, waiting; {share(one.pid, seconds):.1%} of a core")
    two = server(port, folder)
    wait_for(lambda: "round 2: " in (folder / "events.log").read_text() if (folder / "events.log").is_file() else False)
    shown(memory(one.pid), base, "node, in rounds")
    shown(memory(two.pid), base, "server, in rounds")
    two.terminate()
    two.wait()
    time.sleep(10)
    shown(memory(one.pid), base, f"node after rounds; {share(one.pid, seconds):.1%} of a core")
    one.terminate()
    one.wait()


def share(pid: int, seconds: float) -> float:
    """Return the share of a core that a process and its descendants take."""
    before = processor(pid)
    time.sleep(seconds)
    return (processor(pid) - before) / seconds


def shown(parts: dict[str, float], base: float, title: str) -> None:
    """Print the memory of a command's processes."""
    total = sum(parts.values())
    print(f"{title}: {total:.0f} MB, {total / base:.2f} of a bare process", flush=True)
    for name, size in parts.items():
        print(f"  {size:6.0f} MB  {name}")


def log_of(name: str, folder: Path) -> Path:
    """Return the file with the events of a command."""
    return folder / ("node.log" if name == "node" else "events.log")


def has_said(log: Path, kind: str) -> bool:
    """Return whether a log has an event of a kind; the empty kind is there at once."""
    return not kind or (log.is_file() and f"Z {kind}: " in log.read_text())


def end_soon(command: subprocess.Popen[bytes]) -> None:
    """End a command; the second signal ends a server whose round waits for a node that is gone."""
    for seconds in (5.0, 30.0):
        command.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            command.wait(timeout=seconds)
    command.kill()
    command.wait()


def spans(folder: Path) -> dict[str, list[float]]:
    """Return for each command how long its phases last in one start."""
    port = free_port()
    running = {name: start(port, folder) for name, start in COMMANDS.items()}
    begin, ends = time.monotonic(), dict[str, list[float]]()
    logs = {name: log_of(name, folder) for name in COMMANDS}
    while any(len(ends.get(name, ())) < len(phases) for name, phases in PHASES.items()):
        for name, phases in PHASES.items():
            times = ends.setdefault(name, [])
            while len(times) < len(phases) and has_said(logs[name], phases[len(times)]):
                times.append(time.monotonic() - begin)
        if time.monotonic() - begin > START_SECONDS:
            raise TimeoutError(f"Expected rounds within {START_SECONDS:g} s but got {ends}")
        time.sleep(0.1)
    for command in running.values():
        end_soon(command)
    return {name: [*(j - i for i, j in itertools.pairwise(times)), ROUNDS_SECONDS] for name, times in ends.items()}


def stop(name: str, folder: Path, after: str, seconds: float) -> tuple[float, float, int]:
    """Stop a command some seconds after an event, beside one of the other kind.

    Returns:
        Seconds until it has ended; those of them after the last checkpoint; processes left.
    """
    port = free_port()
    running = {each: start(port, folder) for each, start in COMMANDS.items()}
    try:
        wait_for(lambda: has_said(log_of(name, folder), after))
        time.sleep(seconds)
        members = tree(running[name].pid)
        begin, moment = time.monotonic(), time.time()
        running[name].send_signal(signal.SIGTERM)
        running[name].wait()
        took, end = time.monotonic() - begin, time.time()
        left = sum(map(lives, members))
    finally:
        for command in running.values():
            end_soon(command)
    written = max((path.stat().st_mtime for path in folder.glob("**/last.ckpt")), default=0.0)
    return took, min(took, end - max(moment, written)), left


def stops(folder: Path, names: Sequence[str], count: int, seed: int) -> None:
    """Print how long commands take from SIGTERM to their end, at random instants in each phase in turn."""
    draw = random.Random(seed)
    (folder / "start").mkdir()
    lengths = spans(folder / "start")
    for name in names:
        times: dict[str, list[float]] = {}
        beside, left = [], 0
        for number in range(count):
            place, phase = folder / f"{name}{number}", number % len(PHASES[name])
            place.mkdir()
            after, seconds = PHASES[name][phase], lengths[name][phase] * draw.random()
            took, rest, remain = stop(name, place, after, seconds)
            sys.stderr.write(f"{name}: {took:.1f} s, {rest:.1f} s, {seconds:.1f} s after {after or 'the start'}\n")
            times.setdefault(after or "the start", []).append(took)
            beside.append(rest)
            left += remain
        most = max(itertools.chain(*times.values()))
        words = f", {max(beside):.1f} s after the last checkpoint" if name == "server" else ""
        print(f"{name}: at most {most:.1f} s in {count} stops{words}; {left} processes left")
        for after, each in times.items():
            print(f"  after {after}: {', '.join(f'{seconds:.1f}' for seconds in sorted(each))} s")
        print(f"  load average {os.getloadavg()[2]:.1f} in the last 15 minutes, {os.cpu_count()} cores", flush=True)


COMMANDS = {"node": node, "server": server}
PHASES = {
    "node": ("", "starting", "made", "connecting", "joined", "served"),
    "server": ("", "listening", "needs", "complete", "served"),
}
"""Events with which the phases of a command begin; the first begins with the process."""
ROUNDS_SECONDS = 10.0
"""Seconds after the first served round in which a command is stopped."""


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=30.0, help="how long a load is measured")
    options.add_argument("--stops", type=int, default=0, help="number of stops per command, instead of sizes")
    options.add_argument(
        "--of", nargs="+", choices=["node", "server"], default=["node", "server"], help="who is stopped"
    )
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hetfl-bench-") as folder:
        if given.stops:
            stops(Path(folder), given.of, given.stops, given.seed)
        else:
            sizes(Path(folder), given.seconds)


if __name__ == "__main__":
    main()
