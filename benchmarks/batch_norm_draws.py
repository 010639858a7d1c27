"""How the accuracy of levels depends on the clients and the bits with which batch norm's statistics are gathered.

The demo is trained once. Then its last model is evaluated many times: with the statistics of n clients per level, drawn
anew each time, and with the values that these clients are sent as codes of a number of bits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from hetfl import FederatedModule
from hetfl.cli import main as hetfl
from hetfl.compression import DynamicRange

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"
ALL = 50
"""Clients of the demo."""

CASES = [*((clients, 8) for clients in (1, 2, 5, 10, 20, ALL)), (10, 3), (10, 4), (10, 6), (10, 32), (ALL, 32)]
"""Clients per level and bits of an entry; 32: float32."""


@torch.no_grad()
def accuracies(module: FederatedModule, clients: int, bits: int, draw: int) -> dict[str, float]:
    """Return the test accuracy of every level with statistics of a number of clients, which a draw chooses."""
    evaluation, broadcast = module.evaluation, module.evaluation.gathering.probing.task_parts.broadcast
    module.statistics.most, module.statistics._mark = clients, None
    evaluation.gathering.seed = broadcast.seed = draw
    downlink = broadcast.downlink
    if downlink is None:
        raise RuntimeError("Expected a downlink in the demo but got none")
    downlink.statistics = DynamicRange(bits=min(bits, 8), bucket=512, stochastic=True)
    broadcast.downlink = None if bits == 32 else downlink
    broadcast.forget()
    evaluation.begin()
    for batch in evaluation.data.test_dataloader()[0]:
        evaluation.measure_levels(batch)
    broadcast.downlink = downlink
    columns = evaluation.columns("test")
    levels = list(module.levels)
    return {
        level: 100 * float(columns.get(f"test/accuracy_by_level/{level}", columns["test/accuracy"])) for level in levels
    }


class Draws(Callback):
    """Evaluates a trained module by the statistics of many draws of clients, and writes the accuracies to a file.

    Args:
        path: a JSON file: a list of [clients, bits, draw, accuracy by level].
        draws: of each case.
    """

    def __init__(self, path: str, draws: int) -> None:
        self.path, self.draws = Path(path), draws

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the cases."""
        if not isinstance(pl_module, FederatedModule):
            raise TypeError(f"Expected a FederatedModule but got {type(pl_module).__name__}")
        pl_module.eval()
        rows = [
            [clients, bits, draw, accuracies(pl_module, clients, bits, draw)]
            for clients, bits in CASES
            for draw in range(self.draws)
        ]
        self.path.write_text(json.dumps(rows), encoding="ascii")


def table(rows: list[tuple[int, int, int, dict[str, float]]]) -> Iterator[str]:
    """Yield a Markdown table: mean and standard deviation over draws, by clients and bits."""
    levels = list(rows[0][3])
    yield "| clients per level | bits | " + " | ".join(levels) + " |"
    yield "|---" * (2 + len(levels)) + "|"
    for case in dict.fromkeys((clients, bits) for clients, bits, _, _ in rows):
        found = [scores for clients, bits, _, scores in rows if (clients, bits) == case]
        cells = [[scores[level] for scores in found] for level in levels]
        shown = (f"{statistics.mean(cell):.2f} ± {statistics.stdev(cell):.2f}" for cell in cells)
        yield f"| {case[0]} | {case[1]} | " + " | ".join(shown) + " |"


def main() -> None:
    """Train the demo, and print the table."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--draws", type=int, default=10, help="of clients, per case (default: %(default)s)")
    given, settings = options.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        arguments = ["fit", "-c", str(CONFIG), "--plots=false", "--final_test=false", f"--trainer.logger.root={folder}"]
        arguments += ["--trainer.check_val_every_n_epoch=60", "--trainer.callbacks+=batch_norm_draws.Draws"]
        arguments += [f"--trainer.callbacks.path={rows}", f"--trainer.callbacks.draws={given.draws}"]
        hetfl([*arguments, *settings])
        print(*table(json.loads(rows.read_text(encoding="ascii"))), sep="\n")


if __name__ == "__main__":
    main()
