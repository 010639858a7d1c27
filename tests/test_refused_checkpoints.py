"""A refused checkpoint leaves the run's folder unchanged, to the last byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from hetfl import FederatedModule
from hetfl.analysis import Snapshots
from hetfl.analysis.traffic import load_residuals
from hetfl.clustering import IFCA
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.run_folder import LOCK, RunFolder
from hetfl.selection import Uniform
from hetfl.store import DiskStore
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
Content = dict[str, Any]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the bytes and the modification time of every file."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def module(**changes: Any) -> FederatedModule:
    return small_module(uplink=ErrorFeedback(TopK(0.1), DiskStore()), clustering=IFCA(2), **changes)


def options(folder: Path | None = None) -> dict[str, Any]:
    going_on = {} if folder is None else {"logger": RunFolder(folder=str(folder))}
    return {"plugins": [SafeCheckpointIO()], "callbacks": [Snapshots(every=1)], **going_on}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two rounds; its table has one more round than its checkpoint."""
    torch.set_num_threads(1)
    root = str(tmp_path_factory.mktemp("source"))
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=RunFolder(root), **quiet, **options())
    trainer.fit(module(), datamodule=small_data())
    folder = Path(str(trainer.log_dir))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    trainer.save_checkpoint(folder / "checkpoints" / "weights.ckpt", weights_only=True)
    with (folder / "metrics.csv").open("a") as file:
        file.write("2" + "," * (folder / "metrics.csv").read_text().splitlines()[0].count(",") + "\n3,torn")
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Path:
    """Return a copy of the source folder."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


def without(name: str) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        del content[name]

    return change


def no_loop(content: Content) -> None:
    content["loops"] = {}


def other_groups(content: Content) -> None:
    content["optimizer_states"][0]["param_groups"][0]["params"].append(99)


def one_optimizer(content: Content) -> None:
    content["optimizer_states"].pop()


def a_schedule(content: Content) -> None:
    content["lr_schedulers"].append({})


def no_uplink(content: Content) -> None:
    del content["hetfl"]["pieces"]["uplink"]


def more_rounds(content: Content) -> None:
    content["hetfl"]["version"] = 4


def many_models(content: Content) -> None:
    content["hetfl"]["models"] = 10**9


def of_state(name: str, value: object) -> Callable[[Content], None]:
    return lambda content: content["hetfl"].update({name: value})


def of_piece(name: str, **values: object) -> Callable[[Content], None]:
    return lambda content: content["hetfl"]["pieces"].update(
        {name: {**content["hetfl"]["pieces"][name], **values} if values else {}}
    )


def of_loop(name: str, value: object) -> Callable[[Content], None]:
    return lambda content: content["loops"]["fit_loop"].update({name: value})


CHANGES: dict[str, tuple[Callable[[Content], None], str]] = {
    "optimizers": (without("optimizer_states"), "one of weights only"),
    "schedules": (without("lr_schedulers"), "Expected lr_schedulers"),
    "loops": (without("loops"), "Expected loops"),
    "fit loop": (no_loop, "Expected a fit_loop"),
    "groups": (other_groups, "Expected optimizers of"),
    "carrier": (one_optimizer, "Expected optimizers of"),
    "schedule": (a_schedule, "Expected 0 schedules"),
    "federation": (without("hetfl"), "without a federation's state"),
    "uplink": (no_uplink, "Expected a whole federation's state"),
    "models": (many_models, "Expected 2 global models in the checkpoint, as it has values of, but got 1000000000"),
    "rows": (more_rounds, "Expected 4 rounds in"),
    "epochs": (of_loop("epoch_progress", {}), "Expected counts as epoch_progress .* but got {}"),
    "batches": (
        of_loop("epoch_loop.batch_progress", {"total": {"ready": "1"}, "current": {}}),
        "Expected counts as epoch_loop.batch_progress",
    ),
    "no state": (lambda content: content.update(hetfl=5), "Expected a federation's state .* but got 5"),
    "text": (of_state("version", "1"), "Expected a number of rounds as version in the checkpoint but got '1'"),
    "negative": (of_state("version", -3), "Expected a number of rounds as version in the checkpoint but got -3"),
    "fraction": (of_state("version", 1.5), "Expected a number of rounds as version in the checkpoint but got 1.5"),
    "fingerprint": (of_state("fingerprint", []), r"Expected texts by name as fingerprint .* but got \[\]"),
    "rates": (
        of_state("learning_rates", {}),
        "Expected the rates of server and clients as learning_rates .* but got {}",
    ),
    "pieces": (of_state("pieces", []), r"Expected states by name as pieces .* but got \[\]"),
    "shared": (of_state("shared", "*"), "Expected a list of patterns as shared"),
    "piece": (
        of_piece("uplink"),
        r"Expected a state of ErrorFeedback as uplink in the checkpoint but got another \(KeyError: 'compressor'\)",
    ),
    "clock": (of_piece("ledger", seconds=float("nan")), "Expected finite numbers from 0 .* but got {'seconds': nan}"),
    "bytes": (of_piece("ledger", up_bytes=-1), "Expected finite numbers from 0 .* but got {'up_bytes': -1}"),
    "unknown cost": (of_piece("ledger", gold=1), "Expected a state of Ledger as ledger"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_refused_checkpoint_does_not_change_the_run_folder(fit: Fit, run: Path, name: str) -> None:
    change, message = CHANGES[name]
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # noqa: TID251
    writer = SafeCheckpointIO()  # which checks the first one that it writes
    writer.save_checkpoint(content, run / "checkpoints" / "changed.ckpt")
    change(content)
    writer.save_checkpoint(content, run / "checkpoints" / "changed.ckpt")
    before = contents(run)
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(module(), rounds=5, ckpt=str(run / "checkpoints" / "changed.ckpt"), **options(run))
    assert "\n" not in str(error.value)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["no state", "text", "piece"])
def test_a_strangers_checkpoint_is_refused_without_hetfls_plugin(fit: Fit, run: Path, name: str) -> None:
    change, message = CHANGES[name]
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # noqa: TID251
    change(content)
    torch.save(content, run / "changed.ckpt")
    with pytest.raises(ConfigurationError, match=message):
        fit(module(), rounds=5, ckpt=str(run / "changed.ckpt"))


def test_a_weights_only_checkpoint_can_be_tested_but_not_resumed(fit: Fit, run: Path) -> None:
    weights, before = str(run / "checkpoints" / "weights.ckpt"), contents(run)
    with pytest.raises(ConfigurationError, match="weights only"):
        fit(module(), rounds=5, ckpt=weights, **options(run))
    assert contents(run) == before
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    whole = str(run / "checkpoints" / "last.ckpt")
    tested = [
        plain.test(small_module(clustering=IFCA(2)), small_data(), ckpt, verbose=False, weights_only=True)
        for ckpt in (weights, whole)
    ]
    assert tested[0] == tested[1]
    with pytest.raises(ConfigurationError, match="holds weights only"):
        load_residuals(weights)


def test_weights_only_checkpoints_delete_no_residual_files(fit: Fit) -> None:
    """Files that the last complete checkpoint refers to stay, however many weights-only checkpoints follow."""
    every = {"enable_checkpointing": True, "plugins": [SafeCheckpointIO()]}
    light = ModelCheckpoint(filename="weights", save_weights_only=True, save_on_train_epoch_end=True)
    whole = ModelCheckpoint(filename="whole", every_n_epochs=4, save_on_train_epoch_end=True)
    uplink: dict[str, Any] = {"uplink": ErrorFeedback(TopK(0.1), DiskStore()), "selection": Uniform(2)}
    trainer = fit(
        small_module(**uplink),
        small_data(num_clients=2),
        limit_val_batches=0,
        rounds=7,
        callbacks=[light, whole],
        **every,
    )
    folder = Path(str(trainer.log_dir))
    store = load_residuals(folder / "checkpoints" / "whole.ckpt")
    assert len(store.clients()) == 2
    assert all(store.load(client) for client in store.clients())


class Failing(Callback):
    """Fails after Lightning has restored everything, at the last moment before training."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise RuntimeError("too late")


def test_a_validation_before_training_writes_nothing(fit: Fit, run: Path) -> None:
    before, settings = contents(run), options(run)
    settings["callbacks"].append(Failing())
    with pytest.raises(RuntimeError, match="too late"):
        fit(module(), rounds=5, ckpt=str(run / "checkpoints" / "last.ckpt"), num_sanity_val_steps=1, **settings)
    assert contents(run) == before
