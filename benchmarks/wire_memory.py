"""Peak memory of reading a message, as multiples of a dense float32 message; all values are sent.

Values are codes with a scale and a zero point for every value, which is the worst known case. Each message is read in a
separate process, whose peak memory is compared with its memory before reading, the message included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hetfl.codes import Codes, bucket_sizes
from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update
from hetfl.wire import Expected, decode, dense_size, encode

KINDS = ("dense", "gaps", "runs", "seeded", "low rank")


def coded(update: Update, bits: int) -> Update:
    """Return the same entries as codes of 0, in buckets of one."""
    count = update.num_sent
    each = torch.ones(count)
    return update.with_codes(Codes(torch.zeros(count, dtype=torch.int32), bits, each, each, bucket_sizes(count, 1), 1))


def updated(kind: str, side: int) -> Update:
    """Return an update of a square matrix with the largest number of values; with gaps, every second entry."""
    size = side**2
    match kind:
        case "dense":
            return DenseUpdate(torch.zeros(size))
        case "seeded":
            return SeededUpdate(torch.zeros(size), SeededUpdate.positions(5, [size], [size]), size, 5, (size,))
        case "low rank":
            return LowRankUpdate(torch.zeros(2 * size), Layout({"w": (side, side)}), (side,))
    indices = torch.arange(0, size, 2 if kind == "gaps" else 1)
    return SparseUpdate(torch.zeros(indices.numel()), indices, size)


def resident(field: str) -> int:
    """Return the memory of this process in bytes (Linux): ``VmRSS`` is the current value, ``VmHWM`` the peak."""
    # getrusage also has the peak, but a new process inherits the peak of its parent.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def read(file: Path, side: int) -> float:
    """Return the increase of the peak by reading a message, in units of a dense message."""
    layout = Layout({"w": (side, side)})
    small = Layout({"w": (2, 2)})
    for kind in KINDS:  # loads libraries, which allocate buffers
        decode(encode(coded(updated(kind, 2), 8), round=0, client=0), Expected(0, 0, 4, layout=small))
    data = file.read_bytes()
    before = resident("VmRSS")
    decode(data, Expected(0, 0, side**2, layout=layout))
    return (resident("VmHWM") - before) / dense_size(side**2)


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--side", type=int, default=3000, help="rows and columns of the matrix")
    options.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.read:
        print(read(given.read, given.side))
        return
    print("| kind | 1 bit | 16 bits |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            multiples = []
            for bits in (1, 16):
                file = Path(folder) / "message"
                file.write_bytes(encode(coded(updated(kind, given.side), bits), round=0, client=0))
                command = [sys.executable, __file__, "--side", str(given.side), "--read", str(file)]
                multiples.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
            print(f"| {kind} | " + " | ".join(f"{multiple:.1f}" for multiple in multiples) + " |")


if __name__ == "__main__":
    main()
