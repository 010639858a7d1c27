"""Output of a run: columns for its loggers, tables for its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl.clustering import Clustering
from hetfl.data import FederatedDataModule
from hetfl.data.mix import class_mix, divergence
from hetfl.objectives import Objective
from hetfl.piece import Piece
from hetfl.printable import printable
from hetfl.runs import RunFolder, about
from hetfl.runs.headline import ACCURACY, FILE, Headline
from hetfl.runs.metrics_file import columns_of, encoded, format_value

Table = tuple[Sequence[str], Iterable[Sequence[object]]]
"""Columns and rows."""

CLUSTER_COLUMNS = ("round", "client", "cluster")
"""Columns of ``clusters.csv``, which has a row for every change of the cluster of a client."""

_CLUSTERS: WeakKeyDictionary[RunFolder, tuple[object, ...]] = WeakKeyDictionary()
"""By run folder, the number of rows of its ``clusters.csv`` and the last row."""

VALUE_COLUMNS = ("round", "client", "measure", "value")
"""Columns of ``values.csv``, which has a row for every round, client and measure."""

TIMELINE_COLUMNS = ("round", "client", "level", "taken", "start", "end", "staleness", "largest_staleness", "accepted")
"""Columns of ``timeline.csv``, which has a row for every arrival, in the round of the arrival."""

DATA_COLUMNS = ("client", "samples", "divergence", "noise")
"""Columns of ``client_data.csv``, which has a row for every client; see :func:`hetfl.data.mix.divergence`."""


def run_folders(loggers: Iterable[object]) -> list[RunFolder]:
    """Return the loggers that are run folders."""
    return [logger for logger in loggers if isinstance(logger, RunFolder)]


def bind(trainer: Trainer, pieces: Mapping[str, Piece]) -> None:
    """Set the folders of the files that pieces keep in a run."""
    folder = trainer.log_dir if trainer.loggers else None
    for name, piece in pieces.items():
        piece.bind(f"{folder}/{piece.files or name}" if folder else None)


def find(trainer: Trainer, pieces: Mapping[str, Piece]) -> None:
    """Set the folders of the files that pieces kept in the run whose checkpoint is evaluated."""
    run = Path(trainer.ckpt_path or "").parent.parent
    for name, piece in pieces.items() if trainer.ckpt_path else ():
        piece.find(str(run / (piece.files or name)))


def check_rounds(loggers: Iterable[object], before: int) -> None:
    """Refuse to continue run folders without the rows of all rounds before ``before``."""
    for folder in run_folders(loggers):
        folder.check_rounds(before)


def log_columns(module: LightningModule, columns: Mapping[str, Tensor | float], round: int) -> None:
    """Log values of a round in float64, because Lightning would convert Python numbers to float32.

    In training the loggers get the values at once. Lightning's ``log`` passes them on at the end of the epoch, after
    the checkpoint of the round, and a process killed between the two would leave a round without its row.
    """
    training = module.trainer.state.fn == "fit"
    values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in columns.items()}
    later = False if training else None  # None: if there is a logger
    module.log_dict(values, logger=later, on_step=False, on_epoch=True, batch_size=1, add_dataloader_idx=False)
    if module.loggers:
        module.log("step", float(round), on_step=False, on_epoch=True, batch_size=1)
    for logger in module.loggers if training and not module.trainer.sanity_checking else ():
        logger.log_metrics({name: value.item() for name, value in values.items()}, step=round)


def go_on(folder: RunFolder, version: int, levels: Iterable[str], headline: Headline) -> None:
    """Remove what will be written again, add all columns of a run, and write the headline.

    These are the rows of rounds that will be repeated, and ``clients.csv``, whose scores are those of an older model.
    """
    folder.truncate(version)
    folder.remove_table("clients")
    folder.declare([*columns_of(headline.name), *(headline.column("val", level) for level in levels)])
    if headline != ACCURACY:
        _write(folder, FILE, headline.to_json())


def note_start(folder: RunFolder, data: FederatedDataModule, objective: Objective, device: torch.device) -> None:
    """Write what is known of a run beside its settings, once: a resumed run keeps the date of its first start."""
    if folder.has_file(about.FILE):
        return
    resident = data.resident
    known = about.about_now(
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        classes=data.num_classes if objective.owns_labels else None,
        train_samples=sum(data.sizes),
        val_samples=len(resident.validation.targets),
        test_samples=len(resident.all_test.targets),
    )
    _write(folder, about.FILE, known.to_json())


def save_clusters(module: LightningModule, clustering: Clustering, models: int) -> None:
    """Write ``clusters.csv`` if it has changed, and other tables of a clustering, if there can be several clusters.

    The history of a million clients takes seconds to write.
    """
    if not clustering.several(models):
        return
    state = (len(clustering.history), *clustering.history[-1:])
    for folder in () if module.trainer.sanity_checking else run_folders(module.loggers):
        if _CLUSTERS.get(folder) != state:
            lines = [encoded(map(str, row)) for row in (CLUSTER_COLUMNS, *clustering.history)]
            if _write(folder, "clusters.csv", b"".join(lines)):
                _CLUSTERS[folder] = state
    save_tables(module, clustering.tables())


def save_values(
    module: LightningModule, data: FederatedDataModule, round: int, values: Mapping[str, Mapping[int, float]]
) -> None:
    """Append the values of a round to ``values.csv``; write ``client_data.csv`` once, with which they are compared.

    Args:
        module: a federated module.
        data: its data.
        round: the round.
        values: by measure and client.
    """
    rows = [
        (round, client, measure, format_value(value))
        for measure, of_clients in values.items()
        for client, value in sorted(of_clients.items())
    ]
    for folder in run_folders(module.loggers) if rows else ():
        folder.append_rows("values", VALUE_COLUMNS, rows)
        if not folder.has("client_data"):
            folder.write_table("client_data", DATA_COLUMNS, _data_rows(data))


def save_timeline(module: LightningModule, rows: Sequence[Sequence[object]]) -> None:
    """Append the arrivals of a round to ``timeline.csv``."""
    for folder in run_folders(module.loggers) if rows else ():
        folder.append_rows("timeline", TIMELINE_COLUMNS, rows)


def _write(folder: RunFolder, name: str, data: bytes) -> bool:
    """Write a file into a run's folder; if that fails, warn and return False."""
    try:
        folder.write_file(name, data)
    except OSError as error:
        rank_zero_warn(f"{printable(error.filename)} not written ({error.strerror})")
        return False
    return True


def _data_rows(data: FederatedDataModule) -> list[tuple[object, ...]]:
    """Return per client its samples, the divergence of its labels and the noise of its samples; None: unknown."""
    clients, transform = range(data.num_clients), data.client_transform
    divergences = divergence(class_mix(data)).tolist() if data.objective.owns_labels else [None for _ in clients]
    noise = [0.0 if transform is None else transform.amount(*each) for each in data.resident.changed_as]
    return list(zip(clients, data.sizes, divergences, noise, strict=True))


def save_tables(module: LightningModule, tables: Mapping[str, Table]) -> None:
    """Write tables into a run's folder, but for the check before training.

    Args:
        module: a federated module.
        tables: columns and rows by name.
    """
    for folder in () if module.trainer.sanity_checking else run_folders(module.loggers):
        for name, (columns, rows) in tables.items():
            folder.write_table(name, columns, rows)
