"""Checkpoints of PreActResNet-18 with the residuals of many clients, in memory and on disk, against weights alone."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from lightning import Trainer
from timing import Row, interleaved, parser, report, rows

from hetfl import FedAvg
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import TensorData
from hetfl.models import PreActResNet
from hetfl.runs import RunFolder
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.selection import Uniform
from hetfl.store import ClientStore, DiskStore, MemoryStore
from hetfl.submodel import parameters_of


def trained(store: ClientStore, clients: int, folder: Path) -> Trainer:
    """Return the trainer of a run of one round, after which every client has a residual of the whole model.

    Args:
        store: the store of residuals.
        clients: number of clients, each with one residual.
        folder: folder of the run.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2 * clients, 3, 32, 32), generator=random, dtype=torch.uint8)
    labels = torch.arange(2 * clients) % 10
    data = TensorData(
        train_inputs=images,
        train_targets=labels,
        test_inputs=images,
        test_targets=labels,
        num_classes=10,
        num_clients=clients,
        val_fraction=0.0,
    )
    module = FedAvg(PreActResNet, selection=Uniform(1), uplink=ErrorFeedback(TopK(0.01), store))
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=RunFolder(str(folder)),
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    weights = parameters_of(module.net)
    for client in range(clients):
        store.save(client, {name: torch.randn(w.shape, generator=random) for name, w in weights.items()}, round=0)
    return trainer


def checkpoints(clients: int, *, blocks: int) -> list[Row]:
    """Return the times of saving and loading a checkpoint, and of saving and loading the weights alone.

    Args:
        clients: number of clients with a residual of the whole model.
        blocks: timed blocks.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = {side: folder / f"{side}.ckpt" for side in ("weights alone", "DiskStore", "MemoryStore")}
        writer = SafeCheckpointIO(keep=1)
        disk = trained(DiskStore(), clients, folder)
        memory = trained(MemoryStore(), clients, folder)
        weights = {"state_dict": disk.lightning_module.state_dict()}
        saves: dict[str, Callable[[], object]] = {
            "weights alone": lambda: writer.save_checkpoint(weights, files["weights alone"]),
            "DiskStore": lambda: disk.save_checkpoint(files["DiskStore"]),
            "MemoryStore": lambda: memory.save_checkpoint(files["MemoryStore"]),
        }
        saved = interleaved(saves, blocks=blocks, warmup=1)
        loads = {side: lambda path=path: writer.load_checkpoint(path) for side, path in files.items()}
        loaded = interleaved(loads, blocks=blocks, warmup=1)
        sides = {side: f"{side}, {path.stat().st_size / 1e6:.1f} MB" for side, path in files.items()}
    results = []
    for verb, times in (("save", saved), ("load", loaded)):
        case = f"{verb} a checkpoint, PreActResNet-18, {clients} clients"
        results += rows(case, {sides[side]: seconds for side, seconds in times.items()})
    return results


def main() -> None:
    """Run from the command line."""
    options = parser(__doc__, blocks=3)
    options.add_argument("--clients", type=int, nargs="+", default=[100], help="clients (default: %(default)s)")
    given = options.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    report([row for clients in given.clients for row in checkpoints(clients, blocks=given.blocks)], given.json)


if __name__ == "__main__":
    main()
