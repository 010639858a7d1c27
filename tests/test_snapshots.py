"""Writing snapshots: counts against masks, the same bytes after a resume, faults, and no effect on the run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hetfl import ConfigurationError, FederatedModule, HeteroFL
from hetfl.analysis import RunSnapshots, Snapshots, load_snapshots
from hetfl.cli import main
from hetfl.compression import ErrorFeedback, GammaFedHT, TopK
from hetfl.federation import FederatedCallback
from hetfl.layout import Index, Layout
from hetfl.local import Workers
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.runs import RunFolder
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.selection import Everyone
from hetfl.types import ClientContext, Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update
from tests.conftest import small_data, small_module, small_net
from tests.demo_cases import DEMO
from tests.test_cli import tiny

Fit = Callable[..., Trainer]


def folder_of(trainer: Trainer) -> Path:
    return Path(trainer.logger.save_dir)  # type: ignore[union-attr,arg-type]


def snapshots_of(trainer: Trainer) -> RunSnapshots:
    return load_snapshots(folder_of(trainer))


def files_of(trainer: Trainer) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder_of(trainer) / "snapshots").iterdir()}


def net_with(norm: str) -> Callable[..., nn.Module]:
    return lambda *, width=1.0: small_net(width=width, norm=norm)


# Counts per tensor of an update.


@given(sizes=st.lists(st.integers(0, 5), max_size=6), data=st.data())
def test_entries_sent_per_tensor_equal_a_count_one_by_one(sizes: list[int], data: st.DataObject) -> None:
    layout = Layout({f"t{number}": (size,) for number, size in enumerate(sizes)})
    sent = data.draw(st.lists(st.sampled_from(range(layout.size)), unique=True) if layout.size else st.just([]))
    owner = [tensor for tensor, size in enumerate(sizes) for _ in range(size)]
    expected = [sum(owner[entry] == tensor for entry in sent) for tensor in range(len(sizes))]
    sparse = SparseUpdate(torch.ones(len(sent)), torch.tensor(sorted(sent), dtype=torch.int64), layout.size)
    for update, counts in ((sparse, expected), (DenseUpdate(torch.zeros(layout.size)), sizes)):
        got = update.num_sent_per_tensor(layout)
        assert got.tolist() == counts
        assert got.dtype == torch.int64
        assert int(got.sum()) == update.num_sent
        with pytest.raises(ValueError, match=f"vector of {layout.size} entries but got one of {layout.size + 1}"):
            update.num_sent_per_tensor(Layout({**layout.shapes, "more": (1,)}))


class Recorder(FederatedCallback):
    """Records the arguments of the callbacks of every round."""

    def __init__(self) -> None:
        self.updates: list[list[tuple[Update, Index, Report]]] = []
        self.order: list[list[str]] = []
        self.processes: set[int] = set()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.updates.append([])
        self.order.append([])

    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        self.order[-1].append(f"end of {done}")

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        self.updates[-1].append((update, index, report))
        self.order[-1].append(f"update of {report.client}")
        self.processes.add(os.getpid())


def test_callbacks_receive_accepted_updates_in_cohort_order(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    module, recorder = small_module(executor=Workers(2)), Recorder()
    plain = module.loss
    refused: list[int] = []

    def loss(outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return plain(outputs, targets, ctx) * (float("nan") if ctx.client in refused else 1.0)

    monkeypatch.setattr(module, "loss", loss)
    module.selection.setup(Facts([10] * 12))
    cohort = module.selection.select(0, Everyone(len(module.selection.sizes)))
    refused.append(cohort[1])
    with pytest.warns(UserWarning, match=f"client {cohort[1]} at level . refused"):
        trainer = fit(module, rounds=1, callbacks=[recorder, Snapshots(1)])
    others = {position: f"update of {client}" for position, client in enumerate(cohort) if client not in refused}
    expected = [line for k in range(4) for line in (others.get(k), f"end of {k + 1}") if line is not None]
    assert recorder.order == [expected]
    assert recorder.processes == {os.getpid()}
    table = snapshots_of(trainer)[0].layers()
    assert table.groupby("tensor")["clients"].sum().max() == 3


class SparesBiases(HeteroFL):
    """Clients of even number send no classifier bias; the others send nothing of the first block's bias."""

    def sent(self, part: Part, level: str, round: int, client: int) -> Part:
        sent = super().sent(part, level, round, client)
        if client % 2:
            return Part({**sent, "blocks.0.conv.bias": (torch.tensor([], dtype=torch.int64),)})
        return Part({name: entry for name, entry in sent.items() if name != "classifier.bias"})


def mask(shape: tuple[int, ...], entry: tuple[slice | Tensor, ...]) -> np.ndarray:
    """Return the mask of an index entry in a tensor, position by position."""
    positions = [
        range(size)[part] if isinstance(part, slice) else part.tolist() for size, part in zip(shape, entry, strict=True)
    ]
    covered = np.zeros(shape, dtype=bool)
    covered[np.ix_(*positions)] = True
    return covered


@pytest.mark.parametrize("norm", ["static_batch", "batch"])
def test_holders_and_entries_equal_counts_with_masks(fit: Fit, norm: str) -> None:
    module = small_module(SparesBiases, net=net_with(norm), uplink=ErrorFeedback(TopK(0.1)))
    recorder = Recorder()
    trainer = fit(module, rounds=4, callbacks=[Snapshots(2), recorder], check_val_every_n_epoch=2)
    module.trainer, shapes = trainer, {name: tuple(p.shape) for name, p in module.net.named_parameters()}
    metrics = pd.read_csv(folder_of(trainer) / "metrics.csv")
    assert snapshots_of(trainer).rounds == (1, 3)
    for round in (1, 3):
        expected = {(level, name): [0, 0, 0] for level in module.levels for name in shapes}
        for client in module.selection.select(round, Everyone(len(module.selection.sizes))):
            level = module.assignment.levels(round)[client]
            part = module.sent(module.parts.part(level, round, client), level, round, client)
            for name, entry in part.items():
                covered = int(mask(shapes[name], entry).sum()) if name in shapes else 0
                if covered:
                    expected[level, name][0] += 1
                    expected[level, name][1] += covered
        for update, index, report in recorder.updates[round]:
            sent = (update.to_dense() != 0).tolist()
            for name, entry in index.items():
                size = int(mask(shapes[name], entry).sum()) if name in shapes else 0
                if size:
                    expected[report.level, name][2] += sum(sent[:size])
                    sent = sent[size:]
            assert sent == []
        table = snapshots_of(trainer)[round].layers()
        keys = list(zip(table["level"], table["tensor"], strict=True))
        assert keys == list(expected)
        assert table[["clients", "held", "sent"]].to_numpy().tolist() == list(expected.values())
        assert table["entries"].tolist() == [int(np.prod(shapes[name])) for _, name in keys]
        assert set(table["step"]) == {round}
        assert table["density"].equals(table["sent"] / table["held"].where(table["held"] > 0))
        assert table["sent"].sum() / table["held"].sum() == metrics["comm/up_density"][round]
    whole = snapshots_of(trainer).layers()
    assert whole["step"].tolist() == [1] * len(expected) + [3] * len(expected)
    assert whole.iloc[len(expected) :].reset_index(drop=True).equals(table)


# Snapshots, the run and its checkpoints.


def test_snapshots_do_not_change_the_run_and_off_writes_no_files(fit: Fit) -> None:
    def run(name: str, every: int) -> Trainer:
        module = small_module(uplink=ErrorFeedback(GammaFedHT(density=0.1)))
        return fit(module, rounds=3, name=name, callbacks=[Snapshots(every)], check_val_every_n_epoch=2)

    off, on = run("off", 0), run("on", 2)
    tables = [(folder_of(trainer) / "metrics.csv").read_bytes() for trainer in (off, on)]
    assert tables[0] == tables[1]
    assert not (folder_of(off) / "snapshots").exists()
    assert list(files_of(on)) == ["round-00001.safetensors"]
    fit(small_module(), rounds=1, logger=False, callbacks=[Snapshots()])


def test_a_resumed_run_ends_with_the_same_bytes(fit: Fit, tmp_path: Path) -> None:
    def module(**changes: Any) -> FederatedModule:
        return small_module(uplink=ErrorFeedback(GammaFedHT(density=0.1)), **changes)

    straight = fit(module(), rounds=6, name="straight", callbacks=[Snapshots(2)], check_val_every_n_epoch=2)
    interrupted = fit(module(), rounds=3, name="interrupted", callbacks=[Snapshots(2)], check_val_every_n_epoch=2)
    interrupted.save_checkpoint(tmp_path / "third.ckpt")
    # The run continued for a while, and was killed during a write.
    folder = folder_of(interrupted) / "snapshots"
    for late in ("round-00003.safetensors", "round-00004.safetensors", "round-100001.safetensors", "round-00005.tmp"):
        (folder / late).write_bytes(b"of another history")
    options: dict[str, Any] = {"logger": RunFolder(folder=str(folder.parent)), "ckpt": str(tmp_path / "third.ckpt")}
    callbacks = [Snapshots(2)]
    resumed = fit(module(), rounds=6, callbacks=callbacks, check_val_every_n_epoch=2, **options)
    assert sorted(files_of(resumed)) == [f"round-0000{round}.safetensors" for round in (1, 3, 5)]
    assert files_of(resumed) == files_of(straight)
    other = fit(module(seed=1), rounds=2, name="other", callbacks=callbacks, check_val_every_n_epoch=2)
    assert files_of(other)["round-00001.safetensors"] != files_of(straight)["round-00001.safetensors"]
    # Old snapshots of repeated rounds must also be deleted if no new ones are written.
    fit(module(), rounds=4, callbacks=[Snapshots()], check_val_every_n_epoch=2, **options)
    assert list(files_of(resumed)) == ["round-00001.safetensors"]


class Watched(SafeCheckpointIO):
    """Records the snapshots on the disk when a checkpoint is written."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], list[str]] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        snapshots = sorted(each.name for each in Path(path).parent.parent.glob("snapshots/*"))
        self.seen[Path(path).stem, checkpoint["hetfl"]["version"]] = snapshots
        super().save_checkpoint(checkpoint, path)


def test_a_snapshot_is_on_the_disk_before_its_rounds_checkpoint(fit: Fit) -> None:
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    best = ModelCheckpoint(filename="best", save_on_train_epoch_end=False, monitor="val/loss", save_top_k=-1)
    watched = Watched()
    options: dict[str, Any] = {"enable_checkpointing": True, "check_val_every_n_epoch": 2, "plugins": [watched]}
    with pytest.warns(UserWarning, match="check_val_every_n_epoch"):
        fit(small_module(), rounds=2, callbacks=[last, best, Snapshots(1)], **options)
    first, second = "round-00000.safetensors", "round-00001.safetensors"
    assert watched.seen == {("last", 1): [first], ("last", 2): [first, second], ("best", 2): [first, second]}


class Stops(FederatedCallback):
    def on_client_end(self, trainer: Trainer, module: LightningModule, done: int, total: int) -> None:
        if done == 2:
            raise InterruptedError


def test_an_interrupted_round_writes_no_snapshot(fit: Fit) -> None:
    module, data, snapshots = small_module(), small_data(), Snapshots(1)
    trainer = fit(module, data, rounds=1, callbacks=[snapshots])
    before = files_of(trainer)
    trainer = Trainer(
        logger=RunFolder(folder=str(folder_of(trainer))),
        max_epochs=2,
        accelerator="cpu",
        callbacks=[snapshots, Stops()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module.models.version = 1
    with pytest.raises(InterruptedError):
        trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    assert files_of(trainer) == before


# Faults.


def test_snapshots_need_a_run_folder(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="run folder, .* a snapshot every 2 rounds but got none") as error:
        fit(small_module(), rounds=1, logger=False, callbacks=[Snapshots(2)])
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigurationError, match="0 for none, but got -1"):
        Snapshots(-1)


@pytest.mark.parametrize("operation", ["pathlib.Path.open", "pathlib.Path.mkdir", "os.replace", "os.fsync"])
def test_a_full_disk_gives_a_warning_and_training_continues(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    class Full(Snapshots):
        def _write(self, trainer: Trainer, module: FederatedModule) -> None:
            def fail(*args: object, **kwargs: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as broken:
                if module.models.last_round == 0:
                    broken.setattr(operation, fail)
                super()._write(trainer, module)

    with pytest.warns(UserWarning, match=r"round-00000.* not written .*No space.*; training goes on") as caught:
        trainer = fit(small_module(net=net_with("none")), rounds=2, callbacks=[Full(1)])
    assert sum("not written" in str(warning.message) for warning in caught) == 1
    assert list(files_of(trainer)) == ["round-00001.safetensors"]


# On the command line.


def test_every_subcommand_accepts_the_configuration_of_a_run_with_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(tiny("--snapshots.every=1"))
    (folder,) = Path("runs/demo").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["snapshots"] == {"every": 1}
    main(["resume", str(folder), "--trainer.max_epochs=2"])
    assert load_snapshots(folder).rounds == (0, 1)
    evaluated = ["-c", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints/last.ckpt")]
    before = {path.name: path.read_bytes() for path in (folder / "snapshots").iterdir()}
    main(["test", *evaluated])
    main(["describe", *evaluated[:2]])
    assert {path.name: path.read_bytes() for path in (folder / "snapshots").iterdir()} == before
    assert list(Path("runs").rglob("snapshots")) == [folder / "snapshots"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", *DEMO, "--print_config"])
    assert "\nsnapshots:\n  every: 0\n" in capsys.readouterr().out
