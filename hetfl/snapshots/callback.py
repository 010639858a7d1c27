"""Snapshots during a run: the global weights, statistics of static batch norm, and counts of held and sent entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedCallback, FederatedModule
from hetfl.files import write_whole
from hetfl.layout import Index
from hetfl.models.static_batch_norm import static_layers
from hetfl.part import only
from hetfl.printable import printable
from hetfl.runs import RunFolder
from hetfl.snapshots.files import encode, forget, path_of
from hetfl.submodel import parameters_of
from hetfl.types import Report
from hetfl.updates import Update
from hetfl.wire import encode_part


class LayerCounts:
    r"""Counts per level: clients that hold each trained tensor, and entries of it that they hold and send.

    For the updates u of a round at one level, with :math:`U_u` the held entries and :math:`S_u \subseteq U_u` the
    entries in the message, the counts of tensor t are :math:`\sum_u [U_{u,t} \ne \emptyset]`,
    :math:`\sum_u |U_{u,t}|` and :math:`\sum_u |S_{u,t}|`.

    Args:
        levels: names of the levels.
        trained: names of the T trained tensors.

    Attributes:
        rows: int64 (3, T) by level: clients, held, sent.
    """

    def __init__(self, levels: Sequence[str], trained: Sequence[str]) -> None:
        self._positions = {name: position for position, name in enumerate(trained)}
        self.rows: dict[str, Tensor] = {level: torch.zeros(3, len(trained), dtype=torch.int64) for level in levels}

    def add(self, level: str, index: Index, update: Update) -> None:
        """Count an update with the entries of ``index``; float buffers, which are sent whole, are not counted."""
        layout = only(index, frozenset(self._positions)).held
        held_T, sent_T = torch.tensor(layout.sizes, dtype=torch.int64), update.num_sent_per_tensor(layout)
        positions = torch.tensor([self._positions[name] for name in layout.shapes], dtype=torch.int64)
        self.rows[level].index_add_(1, positions, torch.stack([held_T.sign(), held_T, sent_T]))


class Snapshots(FederatedCallback):
    """Keeps snapshots of a run in its folder: weights, statistics of static batch norm, and counts of entries.

    :func:`hetfl.analysis.load_snapshots` reads them. A snapshot is on the disk before the checkpoint of its round. It
    has statistics only if the round was validated, because gathering them for the snapshot would change the costs of
    the run. With several global models there is a snapshot per cluster. A run that resumes from a checkpoint deletes
    the snapshots of the rounds that it repeats, even if it keeps no new ones.

    Args:
        every: number of rounds between snapshots: 10 keeps rounds 9, 19, ...; 0: no snapshots.

    Raises:
        ConfigurationError: ``every`` is negative; at the start of training: there is no run folder.
    """

    def __init__(self, every: int = 0) -> None:
        super().__init__()
        if every < 0:
            raise ConfigurationError(f"Expected snapshots.every of at least 1 round, or 0 for none, but got {every}")
        self.every = every
        self._counts: dict[int, LayerCounts] | None = None  # by cluster; None in rounds without a snapshot

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to start training without a run folder.

        Raises:
            ConfigurationError: none of the loggers of the trainer is a run folder.
        """
        if stage == "fit" and self.every and not any(isinstance(logger, RunFolder) for logger in trainer.loggers):
            raise ConfigurationError(
                f"Expected a run folder, hetfl.runs.RunFolder as trainer.logger, to keep a snapshot every "
                f"{self.every} rounds but got none"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the snapshots of rounds to come; warn if new snapshots will lack statistics."""
        module, folder = cast(FederatedModule, pl_module), _run_folder(trainer)
        if folder is not None:
            forget(folder, module.models.version)
        period = trainer.check_val_every_n_epoch
        if self.every and static_layers(module.net) and period is not None and self.every % period:
            rank_zero_warn(
                f"Expected snapshots.every to be a multiple of trainer.check_val_every_n_epoch, {period}, but got "
                f"{self.every}: snapshots of rounds without validation have no statistics of static batch norm"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count if this round gets a snapshot."""
        round = cast(FederatedModule, pl_module).models.version
        self._counts = {} if self.every > 0 and (round + 1) % self.every == 0 else None

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        """Count an update."""
        if self._counts is not None:
            if report.model not in self._counts:
                self._counts[report.model] = _nothing(cast(FederatedModule, module))
            self._counts[report.model].add(report.level, index, update)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the snapshot of a validated round, because some checkpoints are written right after the validation."""
        self._write(trainer, cast(FederatedModule, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the snapshot of a round that is not validated."""
        self._write(trainer, cast(FederatedModule, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the counts of a round that did not end."""
        self._counts = None

    def _write(self, trainer: Trainer, module: FederatedModule) -> None:
        counts, self._counts = self._counts, None
        folder = None if counts is None else _run_folder(trainer)
        if counts is None or folder is None:
            return
        known, parts = module.statistics.current, _parts(module)
        for cluster, weights in enumerate(module.models.tensors):
            data = encode(
                round=module.models.last_round,
                weights=weights,
                levels=module.levels.sizes,
                statistics=module.statistics.of_model(cluster) if known else {},
                trained=list(parameters_of(module.net)),
                counts=counts.get(cluster, _nothing(module)).rows,
                parts=parts,
                cluster=cluster,
            )
            path = path_of(folder, module.models.last_round, cluster)
            try:
                write_whole(path, data)
            except OSError as error:
                rank_zero_warn(f"Snapshot {printable(path)} not written ({printable(error)}); training goes on")


def _nothing(module: FederatedModule) -> LayerCounts:
    return LayerCounts(list(module.levels), list(parameters_of(module.net)))


def _parts(module: FederatedModule) -> dict[str, bytes]:
    """Return the encoded part of each level after the last round."""
    blocks, whole = module.levels.indices, module.levels.whole
    parts = {level: module.parts.of_level(level, module.models.last_round) for level in blocks}
    return {level: encode_part(part, blocks[level], whole) for level, part in parts.items()}


def _run_folder(trainer: Trainer) -> Path | None:
    folders = (logger.save_dir for logger in trainer.loggers if isinstance(logger, RunFolder))
    return next((Path(folder) for folder in folders if folder is not None), None)
