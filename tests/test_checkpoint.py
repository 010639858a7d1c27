"""Checkpoints: whole or not at all, damage detected, another federation's refused, Ctrl-C at a round's end."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch.optim import SGD

from hetfl import ConfigurationError, FedAvg
from hetfl.checkpoint import SafeCheckpointIO, damage, previous, seal
from hetfl.compression import ErrorFeedback, GammaFedHT, TopK
from hetfl.data import IID
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from tests.conftest import small_data, small_levels, small_module

ROOT = Path(__file__).parent.parent
OPERATIONS = ["pathlib.Path.open", "os.fsync", "os.link", "os.replace", "os.open"]


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((200,), float(number))}


def test_the_newest_checkpoints_are_kept_and_readable_by_torch(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(keep=3), tmp_path / "new" / "last.ckpt"
    for number in range(5):
        checkpoints.save_checkpoint(state(number), path)
    found = {name.name: torch.load(name, weights_only=True)["number"] for name in path.parent.iterdir()}  # noqa: TID251
    assert found == {"last.ckpt": 4, "last.1.ckpt": 3, "last.2.ckpt": 2}
    checkpoints.remove_checkpoint(path)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_write_is_a_warning_and_a_whole_checkpoint_remains(
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


class HalfWritten(io.FileIO):
    """A file on a disk that fills up in the middle of a write."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "disk full")


def test_half_a_write_does_not_reach_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint(state(0), path)
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr("pathlib.Path.open", lambda self, mode: HalfWritten(self, mode.replace("b", "")))
        with pytest.warns(UserWarning, match="disk full"):
            checkpoints.save_checkpoint(state(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def damaged_copies(data: bytes, count: int) -> Iterator[bytes]:
    """Yield copies with one bit flipped, or cut, anywhere."""
    choose = random.Random(0)
    for _ in range(count):
        position = choose.randrange(len(data))
        if choose.random() < 0.7:
            yield data[:position] + bytes([data[position] ^ 1 << choose.randrange(8)]) + data[position + 1 :]
        else:
            yield data[:position]


def test_a_thousand_damages_are_detected_and_the_checkpoint_before_is_taken(tmp_path: Path) -> None:
    checkpoints, path = SafeCheckpointIO(), tmp_path / "last.ckpt"
    checkpoints.save_checkpoint(state(0), path)
    checkpoints.save_checkpoint(state(1), path)
    data = path.read_bytes()
    assert damage(data) is None
    for number, wrong in enumerate(damaged_copies(data, 1000)):
        assert damage(wrong) is not None
        if number % 50 == 0:
            path.write_bytes(wrong)
            with pytest.warns(UserWarning, match=r"last.ckpt is damaged .*; taking .*last.1.ckpt") as said:
                assert checkpoints.load_checkpoint(path)["number"] == 0
            assert len(said) == 1
    previous(path, 1).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"last.ckpt is damaged .*last.1.ckpt is damaged") as error:
        checkpoints.load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_only_an_archive_can_be_sealed() -> None:
    with pytest.raises(ValueError, match="zip"):
        seal(b"no archive, and long enough to be one")


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "net": ({"net": lambda *, width=1.0: ConvNet(hidden=(8, 8), width=width)}, {}),
    "levels": ({"levels": small_levels(1.0, 0.5)}, {}),
    "partition": ({}, {"partitioner": IID()}),
    "compressor": ({"uplink": ErrorFeedback(TopK(0.1))}, {}),
    "seed": ({"seed": 1}, {}),
    "method": ({"kind": FedAvg}, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_federations_checkpoint_is_refused_by_name(
    fit: Callable[..., Trainer], tmp_path: Path, name: str
) -> None:
    uplink = ErrorFeedback(GammaFedHT(density=0.1))
    fit(small_module(uplink=uplink), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    module, data = OTHERS[name]
    other = small_module(**{"uplink": ErrorFeedback(GammaFedHT(density=0.1)), **module})
    with pytest.raises(ConfigurationError, match=f"checkpoint's {name} ") as error:
        fit(other, small_data(**data), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))
    assert "\n" not in str(error.value)


def test_a_changed_learning_rate_is_used_after_resuming(fit: Callable[..., Trainer], tmp_path: Path) -> None:
    def local(lr: float) -> LocalTraining:
        return LocalTraining(optimizer=lambda p: SGD(p, lr=lr))

    fit(small_module(local=local(0.05)), rounds=1).save_checkpoint(tmp_path / "one.ckpt")
    trainer = fit(small_module(local=local(0.02)), rounds=2, name="other", ckpt=str(tmp_path / "one.ckpt"))
    table = pd.read_csv(Path(str(trainer.logger.save_dir)) / "metrics.csv")  # type: ignore[union-attr]
    assert table["lr"].tolist() == [0.02]


COMMAND = (
    "fit -c {root}/configs/demo.yaml --final_test=false --plots=false --model.net.hidden=[8,8] --model.local.epochs=1 "
    "--data.num_clients=12 --trainer.max_epochs={rounds} --trainer.logger.root={folder} --model.statistics_clients=2"
)


def start(args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from hetfl.cli import main; main()", *args.split()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def outcome(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    checkpoint = SafeCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")
    return pd.read_csv(folder / "metrics.csv"), checkpoint


def assert_same(one: Any, two: Any) -> None:
    """Compare nested states bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_same(left, right)
    else:
        assert one == two


def run_folder(root: Path) -> Path:
    (folder,) = (root / "demo").iterdir()
    return folder


def checkpoint_time(root: Path) -> int:
    """Return when the run's checkpoint was written, in nanoseconds; 0 before the first."""
    return max((path.stat().st_mtime_ns for path in root.glob("demo/*/checkpoints/last.ckpt")), default=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    _, error = start(COMMAND.format(root=ROOT, folder=root, rounds=12)).communicate()
    assert not error
    return run_folder(root)


@pytest.mark.parametrize("seed", range(int(os.environ.get("HETFL_KILLS", "2"))))  # two kills each
def test_a_run_killed_at_random_instants_and_resumed_ends_with_the_same_bits(
    tmp_path: Path, whole: Path, seed: int
) -> None:
    choose = random.Random(seed)
    process = start(COMMAND.format(root=ROOT, folder=tmp_path, rounds=12))
    for _ in range(2):
        # The instant: after the next checkpoint that this process writes, anywhere in the rounds that follow.
        seen = checkpoint_time(tmp_path)
        while process.poll() is None and checkpoint_time(tmp_path) == seen:
            time.sleep(0.01)
        time.sleep(choose.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        process = start(f"resume {run_folder(tmp_path)}")
    _, error = process.communicate()
    assert process.returncode == 0, error
    (table, checkpoint), (expected_table, expected) = outcome(run_folder(tmp_path)), outcome(whole)
    pd.testing.assert_frame_equal(table, expected_table, check_exact=True)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "hetfl"):
        assert_same(checkpoint[part], expected[part])


def test_ctrl_c_ends_at_a_round_with_a_checkpoint(tmp_path: Path) -> None:
    process = start(COMMAND.format(root=ROOT, folder=tmp_path, rounds=2000))
    while process.poll() is None and not list(tmp_path.glob("demo/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this round" in error
    assert "Traceback" not in error
    table, checkpoint = outcome(run_folder(tmp_path))
    assert checkpoint["hetfl"]["version"] == len(table) < 2000
