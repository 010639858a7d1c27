"""Memory of the demo over 600 rounds, with the same clients and levels in all rounds."""

from __future__ import annotations

import argparse
import csv
import ctypes
import resource
import tempfile
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl.cli import main as hetfl

MALLINFO = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


class _Mallinfo(ctypes.Structure):
    """The result of glibc's mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def allocated() -> int:
    """Return the bytes that are allocated by glibc's malloc and not freed (glibc 2.33 or later)."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    state = mallinfo2()
    return int(state.uordblks + state.hblkhd)


class MemoryLog(Callback):
    """Writes the peak, resident and allocated memory of the process after every round.

    Args:
        path: a CSV file with the columns round, peak, resident and allocated, in bytes.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a line."""
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resident = resource.getpagesize() * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        with self.path.open("a", encoding="ascii", newline="") as file:
            csv.writer(file).writerow([trainer.current_epoch, peak, resident, allocated()])


def slope(rounds: np.ndarray, values: np.ndarray) -> float:
    """Return the least-squares slope in bytes per round."""
    return float(np.polyfit(rounds, values, 1)[0])


def main() -> None:
    """Run from the command line (Linux only)."""
    options = argparse.ArgumentParser(description=(__doc__ or "").strip())
    options.add_argument("--rounds", type=int, default=600, help="(default: %(default)s)")
    options.add_argument("--warmup", type=int, default=300, help="rounds before the slope (default: %(default)s)")
    given, settings = options.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "memory.csv"
        arguments = ["fit", "-c", str(CONFIG), "--model.assignment=hetfl.fleet.Fixed", "--plots=false"]
        arguments += ["--data.num_clients=10"]  # as many as the cohort, so that all clients take part in every round
        arguments += ["--final_test=false", f"--trainer.max_epochs={given.rounds}", f"--trainer.logger.root={folder}"]
        arguments += ["--trainer.callbacks+=memory.MemoryLog", f"--trainer.callbacks.path={log}"]
        hetfl([*arguments, *settings])
        rounds, peak, resident, given_out = np.loadtxt(log, delimiter=",").T
    late = rounds >= given.warmup
    print(f"peak {peak[-1] / 2**20:.1f} MiB, {(peak[late][-1] - peak[late][0]) / 2**10:.0f} KiB of it since warm-up")
    print(f"slope after {given.warmup} rounds: peak {slope(rounds[late], peak[late]):.0f} bytes a round, ", end="")
    print(f"resident {slope(rounds[late], resident[late]):.0f} bytes a round, ", end="")
    print(f"allocated {slope(rounds[late], given_out[late]):.0f} bytes a round")


if __name__ == "__main__":
    main()
