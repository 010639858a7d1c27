"""Checkpoints: complete or absent, damage detected, other federations refused, Ctrl-C waits for a round's end."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim import SGD

from hetfl import ConfigurationError, FedAvg, FederatedModule
from hetfl.compression import ErrorFeedback, GammaFedHT, TopK
from hetfl.data import IID, FederatedDataModule, ImageTransform, Partitioner
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.runs.checkpoint import END_OF_ARCHIVE, SafeCheckpointIO, SealedFile, damage, previous
from hetfl.selection import Uniform
from hetfl.session.callbacks import LastCheckpoint
from hetfl.store import DiskStore
from hetfl.value import GradientCosine
from tests.conftest import small_data, small_levels, small_module, small_net

ROOT = Path(__file__).parent.parent
OPERATIONS = ["pathlib.Path.open", "os.fsync", "os.replace", "os.open"]


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((200,), float(number))}


def test_the_newest_checkpoints_are_kept_and_torch_can_read_them(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(keep=3), tmp_path / "new" / "last.ckpt"
    for number in range(5):
        checkpoints.save_checkpoint(state(number), path)
    numbers = {name.name: torch.load(name, weights_only=True)["number"] for name in path.parent.iterdir()}  # noqa: TID251
    assert numbers == {"last.ckpt": 4, "last.1.ckpt": 3, "last.2.ckpt": 2}
    checkpoints.remove_checkpoint(path)
    assert not list(path.parent.iterdir())


def test_without_hard_links_checkpoints_are_copied_or_else_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, path = SafeCheckpointIO(keep=3), tmp_path / "last.ckpt"

    def fail(*args: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", fail)
    for number in range(5):
        checkpoints.save_checkpoint(state(number), path)
    assert {name.name: checkpoints.load_checkpoint(name)["number"] for name in tmp_path.iterdir()} == {
        "last.ckpt": 4,
        "last.1.ckpt": 3,
        "last.2.ckpt": 2,
    }
    checkpoints.keep = 2
    monkeypatch.setattr("shutil.copyfile", fail)
    with pytest.warns(UserWarning, match=r"last\.ckpt not kept .*the new one replaces it"):
        checkpoints.save_checkpoint(state(5), path)
    assert not checkpoints.failed
    assert checkpoints.load_checkpoint(path)["number"] == 5
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.filterwarnings("ignore:Checkpoint")
def test_a_kept_checkpoint_that_replaced_a_damaged_one_is_kept_again(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(keep=3), tmp_path / "last.ckpt"
    for number in range(3):
        checkpoints.save_checkpoint(state(number), path)
    for damaged in (path, previous(path, 1)):
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert checkpoints.load_checkpoint(path)["number"] == 0
    for number in range(3, 6):
        checkpoints.save_checkpoint(state(number), path)
    assert [checkpoints.load_checkpoint(previous(path, age))["number"] for age in range(3)] == [5, 4, 3]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_write_gives_a_warning_and_a_complete_checkpoint_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, error: int
) -> None:
    checkpoints, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint(state(0), path)
    checkpoints.save_checkpoint(state(1), path)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as broken:
        broken.setattr(operation, fail)
        with pytest.warns(UserWarning, match="not written .* training goes on"):
            checkpoints.save_checkpoint(state(2), path)
    assert checkpoints.load_checkpoint(path)["number"] in (1, 2)
    assert not list(tmp_path.glob("*.tmp"))
    checkpoints.save_checkpoint(state(3), path)
    assert checkpoints.load_checkpoint(path)["number"] == 3


class Disk:
    """Counts the operations on files opened through it, and fails from the n-th write on."""

    def __init__(self, fail_at: int, half: bool, error: int) -> None:
        self.fail_at, self.half, self.error, self.writes = fail_at, half, error, 0

    def open(self, path: Path, mode: str) -> io.FileIO:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                disk.writes += 1
                if disk.writes < disk.fail_at:
                    written = super().write(data)
                    assert written == len(data)
                    return written
                if disk.half:
                    super().write(bytes(data)[: len(data) // 2])
                raise OSError(disk.error, os.strerror(disk.error))

        return File(path, mode.replace("b", ""))


def test_a_write_that_fails_anywhere_does_not_change_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint(state(0), path)
    before = path.read_bytes()

    def save(disk: Disk) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("pathlib.Path.open", lambda self, mode: disk.open(self, mode))
            checkpoints.save_checkpoint(state(0), path)

    healthy = Disk(10**9, half=False, error=0)
    save(healthy)
    assert path.read_bytes() == before
    previous(path, 1).unlink()
    assert healthy.writes > 20
    for number in range(1, healthy.writes + 1):
        error = (errno.ENOSPC, errno.EIO)[number % 2]
        with pytest.warns(UserWarning, match=f"not written .*{os.strerror(error)}.* training goes on"):
            save(Disk(number, half=number % 3 == 0, error=error))
        assert checkpoints.failed
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    checkpoints.save_checkpoint(state(1), path)
    assert not checkpoints.failed


def damaged_copies(data: bytes, count: int) -> Iterator[bytes]:
    """Yield copies with one flipped bit, or cut off, at random positions."""
    choose = random.Random(0)
    for _ in range(count):
        position = choose.randrange(len(data))
        if choose.random() < 0.7:
            yield data[:position] + bytes([data[position] ^ 1 << choose.randrange(8)]) + data[position + 1 :]
        else:
            yield data[:position]


def test_a_thousand_damaged_files_are_detected_and_the_previous_checkpoint_is_used(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint(state(0), path)
    checkpoints.save_checkpoint(state(1), path)
    assert damage(path) is None
    for number, wrong in enumerate(damaged_copies(path.read_bytes(), 1000)):
        path.write_bytes(wrong)
        assert damage(path) is not None
        if number % 50 == 0:
            with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*; using .*last.1.ckpt") as caught:
                assert checkpoints.load_checkpoint(path)["number"] == 0
            assert len(caught) == 1
    previous(path, 1).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"last.ckpt is damaged .*last.1.ckpt is damaged") as error:
        checkpoints.load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_only_a_zip_archive_can_be_sealed() -> None:
    sealed = SealedFile(io.BytesIO())
    sealed.write(memoryview(b"no archive, and long enough to be one"))
    with pytest.raises(ValueError, match="zip"):
        sealed.seal()


@given(st.lists(st.integers(0, 60), max_size=8))
def test_sealing_keeps_the_bytes_for_any_sizes_of_writes(sizes: list[int]) -> None:
    archive = random.Random(0).randbytes(sum(sizes)) + END_OF_ARCHIVE + bytes(18)
    file, position = io.BytesIO(), 0
    sealed = SealedFile(file)
    for size in [*sizes, 22]:
        sealed.write(memoryview(archive)[position : position + size])
        position += size
    sealed.seal()
    body, comment = file.getvalue()[: len(archive)], file.getvalue()[len(archive) :]
    assert body == archive[:-2] + len(comment).to_bytes(2, "little")
    assert comment == b"hetfl blake2b " + hashlib.blake2b(body, digest_size=32).hexdigest().encode()


def sigmoid_net(*, width: float = 1.0) -> nn.Module:
    net = small_net(width=width)
    for block in list(net.modules()):
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.ReLU):
                setattr(block, name, nn.Sigmoid())
    return net


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "net": ({"net": lambda *, width=1.0: ConvNet(hidden=(8, 8), width=width)}, {}),
    "levels": ({"levels": small_levels(1.0, 0.5)}, {}),
    "layers": ({"net": sigmoid_net}, {}),
    "partition": ({}, {"partitioner": IID()}),
    "transform": ({}, {"transform": ImageTransform(mean=(0.5,), std=(0.4,), maximum=16.0)}),
    "uplink": ({"uplink": ErrorFeedback(TopK(0.1))}, {}),
    "seed": ({"seed": 1}, {}),
    "method": ({"kind": FedAvg}, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_federation_is_refused_with_the_difference(
    fit: Callable[..., Trainer], tmp_path: Path, name: str
) -> None:
    uplink = ErrorFeedback(GammaFedHT(density=0.1))
    fit(small_module(uplink=uplink), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    module, data = OTHERS[name]
    other = small_module(**{"uplink": ErrorFeedback(GammaFedHT(density=0.1)), **module})
    with pytest.raises(ConfigurationError, match=f"checkpoint's {name} ") as error:
        fit(other, small_data(**data), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))
    assert "\n" not in str(error.value)


class Cut(Partitioner):
    """Gives each client the next samples, the first client as many as ``size`` says."""

    def __init__(self, size: int) -> None:
        self.size = size

    def partition(self, labels: torch.Tensor, num_clients: int, generator: torch.Generator) -> list[torch.Tensor]:
        return list(torch.arange(len(labels)).split([self.size, len(labels) - self.size]))


def test_a_checkpoint_of_clients_of_other_sizes_or_another_precision_is_refused(
    fit: Callable[..., Trainer], tmp_path: Path
) -> None:
    path = str(tmp_path / "one.ckpt")

    def cut(size: int) -> FederatedDataModule:
        return small_data(num_clients=2, partitioner=Cut(size))

    def module() -> FederatedModule:
        return small_module(selection=Uniform(2))

    fit(module(), cut(300), rounds=1).save_checkpoint(path)
    with pytest.raises(ConfigurationError, match=r"checkpoint's sizes of clients \(300 to 419 samples, "):
        fit(module(), cut(320), rounds=2, ckpt=path)
    with pytest.raises(ConfigurationError, match=r"checkpoint's precision \(32-true\) but got bf16-mixed"):
        fit(module(), cut(300), rounds=2, ckpt=path, precision="bf16-mixed")


def test_a_checkpoint_of_an_earlier_version_is_resumed_without_the_entries_that_it_lacks(
    fit: Callable[..., Trainer], tmp_path: Path
) -> None:
    path = str(tmp_path / "one.ckpt")
    fit(small_module(), rounds=1).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)  # noqa: TID251
    for name in ("sizes of clients", "transform", "precision", "layers"):
        del checkpoint["hetfl"]["fingerprint"][name]
    torch.save(checkpoint, path)
    resumed = small_module()
    fit(resumed, rounds=2, ckpt=path)
    assert resumed.models.version == 2


def test_a_changed_learning_rate_is_used_after_resuming(fit: Callable[..., Trainer], tmp_path: Path) -> None:
    def local(lr: float) -> LocalTraining:
        return LocalTraining(optimizer=lambda p: SGD(p, lr=lr))

    fit(small_module(local=local(0.05)), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    trainer = fit(small_module(local=local(0.02)), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))
    table = pd.read_csv(Path(str(trainer.logger.save_dir)) / "metrics.csv")  # type: ignore[union-attr]
    assert table["lr"].tolist() == [0.02]


def test_a_full_disk_does_not_delete_files_of_the_last_checkpoint(
    fit: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uplink() -> ErrorFeedback:
        return ErrorFeedback(TopK(0.1), DiskStore(str(tmp_path / "residuals")))

    def options() -> dict[str, Any]:
        callbacks = {"plugins": [SafeCheckpointIO()], "callbacks": [LastCheckpoint(1.0)], "enable_checkpointing": True}
        return {**callbacks, "limit_val_batches": 0}

    write, saves = SafeCheckpointIO._write, 0

    def full_from_the_third(self: SafeCheckpointIO, target: Path, checkpoint: dict[str, Any]) -> None:
        nonlocal saves
        saves += 1
        if saves > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, target, checkpoint)

    with monkeypatch.context() as broken:
        broken.setattr(SafeCheckpointIO, "_write", full_from_the_third)
        with pytest.warns(UserWarning, match="No space left .* training goes on"):
            fit(small_module(uplink=uplink()), rounds=7, **options())
    (last,) = tmp_path.glob("run/*/checkpoints/last.ckpt")
    assert SafeCheckpointIO().load_checkpoint(last)["hetfl"]["version"] == 2
    resumed, whole = small_module(uplink=uplink()), small_module(uplink=ErrorFeedback(TopK(0.1)))
    fit(resumed, rounds=7, name="again", ckpt=str(last), **options())
    fit(whole, rounds=7, name="whole", limit_val_batches=0)
    assert all(torch.equal(resumed.models.tensors[0][name], tensor) for name, tensor in whole.models.tensors[0].items())
    # Checkpoints are written again: there are the clients' files and at most those of the three previous rounds.
    assert len(list((tmp_path / "residuals").iterdir())) <= 12 + 3 * 4


class Clock(Callback):
    """A clock that shows rounds of a second, and checkpoints of a quarter."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.now, self.stop_after, self.written = 100.0, stop_after, list[int]()

    def monotonic(self) -> float:
        return self.now

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.now += 1.0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 == self.stop_after

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.now += 0.25
        self.written.append(trainer.current_epoch + 1)


class Stopped(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 5:
            raise RuntimeError("stopped")


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_other_checkpoints_delete_no_files_of_the_last_one(
    fit: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("hetfl.session.callbacks.time", clock)

    def uplink() -> ErrorFeedback:
        return ErrorFeedback(TopK(0.1), DiskStore(str(tmp_path / "residuals")))

    def options(*more: Callback) -> dict[str, Any]:
        each_round = ModelCheckpoint(filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks = [clock, each_round, LastCheckpoint(0.01), *more]
        enabled = {"enable_checkpointing": True, "limit_val_batches": 0}
        return {"callbacks": callbacks, "plugins": [SafeCheckpointIO()], **enabled}

    with pytest.raises(RuntimeError, match="stopped"):
        fit(small_module(uplink=uplink()), rounds=6, **options(Stopped()))
    (last,) = tmp_path.glob("run/*/checkpoints/last.ckpt")
    assert SafeCheckpointIO().load_checkpoint(last)["hetfl"]["version"] == 1
    resumed, whole = small_module(uplink=uplink()), small_module(uplink=ErrorFeedback(TopK(0.1)))
    fit(resumed, rounds=6, name="again", ckpt=str(last), **options())
    fit(whole, rounds=6, name="whole", limit_val_batches=0)
    assert all(torch.equal(resumed.models.tensors[0][name], tensor) for name, tensor in whole.models.tensors[0].items())


def test_only_a_written_last_checkpoint_is_confirmed_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, last, other = SafeCheckpointIO(), tmp_path / "last.ckpt", tmp_path / "other.ckpt"
    whole, weights = {**state(0), "optimizer_states": []}, state(0)

    def confirmed(checkpoint: dict[str, Any], path: Path) -> bool:
        checkpoints.save_checkpoint(checkpoint, path)
        return checkpoints.confirmed

    assert [confirmed(whole, path) for path in (other, last, other, last)] == [True, True, False, True]
    assert confirmed(weights, other), "the last one with the state of training is last.ckpt"
    write = SafeCheckpointIO._write

    def full(self: SafeCheckpointIO, target: Path, checkpoint: dict[str, Any]) -> None:
        if target == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, target, checkpoint)

    monkeypatch.setattr(SafeCheckpointIO, "_write", full)
    with pytest.warns(UserWarning, match="not written"):
        assert not confirmed(whole, last)
    assert not confirmed(weights, other)
    assert not confirmed(whole, other)
    checkpoints = SafeCheckpointIO()
    checkpoints.load_checkpoint(last)
    assert not confirmed(whole, other)


@pytest.mark.parametrize(
    ("share", "stop_after", "written"),
    # A checkpoint of 0.25 s is a tenth of the time if the next one comes 2.25 s later.
    [(1.0, None, [1, 2, 3, 4, 5, 6, 7, 8]), (0.1, None, [1, 4, 7, 8]), (0.1, 5, [1, 4, 5]), (0.01, None, [1, 8])],
)
def test_checkpoints_take_at_most_their_share_of_the_time_and_the_last_round_has_one(
    fit: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    stop_after: int | None,
    written: list[int],
) -> None:
    clock = Clock(stop_after)
    monkeypatch.setattr("hetfl.session.callbacks.time", clock)
    callbacks = [clock, LastCheckpoint(share)]
    fit(small_module(), rounds=8, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
    assert clock.written == written


def test_a_signal_after_the_decision_of_the_last_round_still_gives_it_a_checkpoint(
    fit: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("hetfl.session.callbacks.time", clock)
    monkeypatch.setattr("hetfl.session.callbacks._ends", lambda trainer: False)  # as it is before the signal comes
    callbacks = [clock, LastCheckpoint(0.1)]
    fit(small_module(), rounds=6, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True)
    assert len(clock.written) == 3
    (last,) = Path(str(callbacks[1].dirpath)).glob("last.ckpt")  # type: ignore[attr-defined]
    assert torch.load(last, weights_only=True)["hetfl"]["version"] == 6  # noqa: TID251


def test_rows_are_flushed_before_the_checkpoint_that_needs_them(
    fit: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", noted)
    options = {"callbacks": [LastCheckpoint(1.0)], "plugins": [SafeCheckpointIO()], "enable_checkpointing": True}
    fit(small_module(measures=[GradientCosine()]), rounds=3, limit_val_batches=0, **options)
    for table in ("metrics.csv", "values.csv"):
        order = [name for name in flushed if name in (table, "last.ckpt.tmp")]
        assert [name for name, _ in groupby(order)] == [table, "last.ckpt.tmp"] * 3


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_wrong_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"Expected share in (0, 1] but got {share}")):
        LastCheckpoint(share)


def test_an_ended_run_keeps_its_newest_checkpoint_unless_that_is_damaged(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(keep=3), tmp_path / "last.ckpt"
    for number in range(4):
        checkpoints.save_checkpoint(state(number), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    checkpoints.drop_previous(path)
    assert len(list(tmp_path.iterdir())) == 3
    path.write_bytes(whole)
    checkpoints.drop_previous(path)
    assert list(tmp_path.iterdir()) == [path]
