"""Memory and start of a node on a small device: it trains level e of HeteroFL's federation on MNIST (Linux only).

The images are noise in MNIST's size and format. The node serves all 100 clients, and every client is at level e. Beside
it stands a bare client: a process that imports PyTorch and Flower's client, reads the same images, and trains a net of
level e's size. Memory is sampled: the PSS of each process, in which a page that processes share counts once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import flower_processes
import numpy as np
from flower_large import Peaks
from flower_processes import HETFL, wait_for

from hetfl.flower.command.processes import free_port

BARE = """
import sys, time, torch, flwr.supernode.cli
from torchvision.datasets import MNIST
print("made", flush=True)
data = MNIST(sys.argv[1])
layers = [torch.nn.Unflatten(1, (1, 28))]
for before, after in ((1, 4), (4, 8), (8, 16), (16, 32)):
    layers += [torch.nn.Conv2d(before, after, 3, padding=1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    layers += [torch.nn.MaxPool2d(2)]
net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(32, 10))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for step in range(60):
    images, targets = data.data[10 * step:][:10], data.targets[10 * step:][:10]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(images / 255), targets).backward()
    optimizer.step()
print("trained", flush=True)
time.sleep(600)
"""
"""A client without hetfl; its argument is the folder of the data."""

IMPORTS = (
    "torch",
    "torch._dynamo",
    "lightning.pytorch.cli",
    "flwr.supernode.runtime.run_clientapp",
    "flwr.supercore.superexec.run_superexec",
    "hetfl.flower.command.warm",
)
"""What a node imports, in this order."""
NEEDLESS = ("flwr.supernode.cli", "flwr.supercore.cli", "sklearn.cluster", "pandas", "hetfl.analysis", "hetfl.report")
"""What a node does without."""
COUNTING = """
import ctypes, importlib, sys
def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1000
for name in sys.argv[1:]:
    before = private()
    importlib.import_module(name)
    print(f"{private():6.0f} MB {private() - before:+6.0f} MB  {name}")
if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)
    print(f"{private():6.0f} MB  after malloc_trim")
"""
"""Prints the private memory of a process after each import; its arguments are the modules."""

SETTINGS = ["-c", "experiment/heterofl_mnist", "--plots", "false", "--final_test", "false"]
SETTINGS += ["--model.assignment={class_path: hetfl.fleet.Fixed, init_args: {proportions: {e: 1}}}"]
SETTINGS += ["--model.selection.init_args.clients_per_round=4", "--model.local.epochs=1"]


def write_images(root: Path) -> None:
    """Write noise as MNIST's four files into a folder."""
    folder, rng = root / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, size in (("train", 60_000), ("t10k", 10_000)):
        pixels, labels = rng.integers(0, 256, (size, 28, 28), np.uint8), np.arange(size, dtype=np.uint8) % 10
        for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            head = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (folder / f"{part}-{name}").write_bytes(head + array.tobytes())


def bare(root: Path) -> tuple[float, float]:
    """Return MB of a bare client that has trained, and its processor seconds until it can begin."""
    with subprocess.Popen([sys.executable, "-c", BARE, str(root)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seconds = flower_processes.processor(process.pid)
        process.stdout.readline()
        size = sum(flower_processes.memory(process.pid).values())
        process.kill()
    return size, seconds


def rounds_of_a_node(folder: Path, rounds: int) -> tuple[Peaks, float]:
    """Run a federation of one node.

    Args:
        folder: with the images; gets the files of the federation.
        rounds: their number.

    Returns:
        The memory of the node from its start, and its processor seconds until it can connect to a server.

    Raises:
        RuntimeError: the run failed.
    """
    port, rest = free_port(), [*SETTINGS, f"--data.root={folder}", f"--trainer.max_epochs={rounds}"]
    options = ["--clients", "0-99", "--server", f"127.0.0.1:{port}", "--states", str(folder / "states")]
    log = folder / "node.log"
    node = flower_processes.started([*HETFL, "client", *options, *rest], log)
    peaks = Peaks({"node": node}, 0.2, folder / "memory.csv")
    peaks.begin()
    try:
        wait_for(lambda: node.poll() is not None or flower_processes.has_said(log, "made"))
        seconds = flower_processes.processor(node.pid)
        options = ["--port", str(port), f"--trainer.logger.init_args.root={folder}"]
        server = flower_processes.started([*HETFL, "server", *options, *rest], folder / "server.log")
        try:
            server.wait(2 * flower_processes.START_SECONDS)
        finally:
            flower_processes.end_soon(server)
        peaks.end()
    finally:
        flower_processes.end_soon(node)
    if server.returncode:
        raise RuntimeError(f"Expected {rounds} rounds but got: {(folder / 'server.log').read_text()}")
    return peaks, seconds


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--imports", action="store_true", help="only the private memory after each import")
    given = options.parse_args()
    if given.imports:
        subprocess.run([sys.executable, "-c", COUNTING, *IMPORTS, *NEEDLESS], check=True)
        return
    with tempfile.TemporaryDirectory(prefix="hetfl-bench-") as temporary:
        folder = Path(temporary)
        write_images(folder)
        size, first = bare(folder)
        peaks, seconds = rounds_of_a_node(folder, given.rounds)
        print(f"bare client: {size:.0f} MB, {first:.1f} s of processor until it can begin")
        print(f"node: at most {peaks.total:.0f} MB, {peaks.total / size:.2f} of the bare client; {seconds:.1f} s")
        for name, (part, _) in sorted(peaks.peak.items()):
            print(f"  at most {part:6.0f} MB  {name}")


if __name__ == "__main__":
    main()
