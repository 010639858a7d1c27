"""``hetfl.Trainer``: a run from Python is a run of the command line, which can resume and repeat it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, Timer

import hetfl
from hetfl.cli import main
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import Digits, Dirichlet
from hetfl.errors import ConfigurationError
from hetfl.fleet import Fixed
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.runs import RunFolder
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.selection import Uniform
from hetfl.session.settings import Settings
from hetfl.signals import SIGNALS
from hetfl.snapshots import Snapshots

CPU: dict[str, Any] = {"accelerator": "cpu", "devices": 1}


def module(seed: int = 0, **settings: Any) -> hetfl.HeteroFL:
    return hetfl.HeteroFL(
        partial(ConvNet, hidden=[4, 8]),
        levels={"a": hetfl.Level("a"), "b": hetfl.Level("b", 0.5)},
        assignment=Fixed({"a": 1, "b": 1}),
        selection=Uniform(clients_per_round=3),
        local=LocalTraining(batch_size=50, optimizer=partial(torch.optim.SGD, lr=0.1)),
        uplink=ErrorFeedback(TopK(0.1)),
        seed=seed,
        **settings,
    )


def digits(seed: int = 0) -> Digits:
    return Digits(num_clients=6, partitioner=Dirichlet(5.0), seed=seed)


def folder_of(root: Path) -> Path:
    (folder,) = (root / "runs/run").iterdir()
    return folder


def rows(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metrics.csv").filter(regex="^(train|val|test|comm|local)/")


class Early(pl.Callback):
    """Ends the run after its first round."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True


def test_a_run_from_python_is_repeated_from_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    users = [EarlyStopping("val/accuracy", mode="max", patience=9), Snapshots(every=1)]
    hetfl.Trainer(max_epochs=2, callbacks=users, **CPU).fit(module(), datamodule=digits(seed=3))
    shown = capsys.readouterr()
    assert "v_num" not in shown.out
    assert "Tip" not in shown.out + shown.err
    assert [line.split(" ")[0] for line in shown.out.splitlines()][:3] == ["run", "clients:", "round"]
    folder = folder_of(tmp_path)
    assert (folder / "plots/accuracy_over_rounds.png").is_file()
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data_seed"] == 3
    (callback,) = config["trainer"]["callbacks"]
    assert callback["init_args"] == {"monitor": "val/accuracy", "mode": "max", "patience": 9}
    main(["fit", "-c", str(folder / "config.yaml"), "--trainer.logger.root=again", "--plots=false"])
    pd.testing.assert_frame_equal(rows(folder), rows(next(Path("again/run").iterdir())))
    main(["resume", str(folder), "--trainer.max_epochs=3", "--plots=false"])
    assert len(rows(folder)) == 3
    assert len(list((folder / "snapshots").iterdir())) == 3


def test_callbacks_that_settings_cannot_make_again_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    users = [
        Snapshots(every=2),
        EarlyStopping("val/loss"),
        EarlyStopping("val/accuracy", min_delta=0.01),  # keeps -0.01
        Timer("00:12:00:00"),  # keeps a number of seconds, which it does not take
    ]
    hetfl.Trainer(max_epochs=1, callbacks=users, final_test=False, plots=False, **CPU).fit(
        module(), datamodule=digits()
    )
    text = (folder_of(tmp_path) / "config.yaml").read_text()
    assert text.splitlines()[1].endswith(": trainer.callbacks[2], trainer.callbacks[3]")
    settings = yaml.safe_load(text)
    assert [each["class_path"].rpartition(".")[2] for each in settings["trainer"]["callbacks"]] == ["EarlyStopping"]
    assert settings["snapshots"] == {"every": 2}  # as of the command line, which would make a second one


def test_a_run_goes_on_in_its_folder_and_a_logger_is_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {**CPU, "final_test": False, "plots": False}
    hetfl.Trainer(max_epochs=1, **options).fit(module(), datamodule=digits())
    folder = folder_of(tmp_path)

    class OfScript(pl.Callback):
        pass

    trainer = hetfl.Trainer(max_epochs=2, logger=pl.loggers.CSVLogger("csv"), callbacks=OfScript(), **options)
    trainer.fit(module(), datamodule=digits(), ckpt_path=folder / "checkpoints/last.ckpt")
    assert "trainer.callbacks[0], trainer.logger\n" in (folder / "config.yaml").read_text()
    assert folder_of(tmp_path) == folder
    assert len(rows(folder)) == 2
    logged = yaml.safe_load(Path("csv/lightning_logs/version_0/hparams.yaml").read_text())
    assert logged["model.uplink.compressor.density"] == "0.1"


def test_ctrl_c_ends_the_script_after_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Interrupt(pl.Callback):
        def on_train_batch_end(self, *args: object) -> None:
            signal.raise_signal(signal.SIGINT)

    trainer = hetfl.Trainer(max_epochs=5, min_epochs=3, min_steps=4, callbacks=[Interrupt()], **CPU)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(module(), datamodule=digits())
    assert (trainer.min_epochs, trainer.min_steps) == (3, 4)
    assert len(rows(folder_of(tmp_path))) == 1
    assert (folder_of(tmp_path) / "checkpoints/last.ckpt").is_file()


def test_a_second_run_of_one_trainer_is_refused_and_the_first_is_not_changed(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    trainer = hetfl.Trainer(max_epochs=2, plots=False, logger=folder, callbacks=[Early()], **CPU)
    first, refusal = module(), "Expected a new trainer for another run but got one that has done {} rounds"
    trainer.fit(first, datamodule=digits())
    path = Path(str(folder.save_dir))
    before = {each: each.read_bytes() for each in path.rglob("*.*")}
    with pytest.raises(ConfigurationError, match=refusal.format(1)):  # one round is left, of the first run
        trainer.fit(module(seed=1), datamodule=digits())
    assert {each: each.read_bytes() for each in path.rglob("*.*")} == before
    trainer.fit(first, datamodule=digits())
    assert first.models.version == len(rows(path)) == 2
    with pytest.raises(ConfigurationError, match=refusal.format(2)):
        trainer.fit(first, datamodule=digits())


def test_an_interrupted_trainer_stops_no_later_run() -> None:
    stop, trainer, module = StopAtRoundEnd(), pl.Trainer(logger=False, accelerator="cpu"), pl.LightningModule()
    before = [signal.getsignal(number) for number in SIGNALS]
    stop.on_train_start(trainer, module)
    os.kill(os.getpid(), signal.SIGTERM)
    assert (stop.signal, trainer.should_stop) == (signal.SIGTERM, True)
    stop.on_train_end(trainer, module)
    with ThreadPoolExecutor() as pool:  # Python refuses signal handlers outside of the main thread
        pool.submit(stop.on_train_start, trainer, module).result()
    assert stop.signal is None
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_no_configuration_can_name_is_noted() -> None:
    noted = Settings()
    settings = noted.of(module(server_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)), "model")
    assert noted.unnamed == ["model.server_optimizer"]
    assert settings["init_args"]["net"] == {"class_path": "hetfl.models.ConvNet", "init_args": {"hidden": [4, 8]}}
    assert settings["init_args"]["levels"] == {"a": {}, "b": {"width": 0.5}}
    noted.unnamed.clear()
    named = noted.of(partial(ConvNet, 3, hidden=[4]), "net")
    assert named == {"class_path": "hetfl.models.ConvNet", "init_args": {"in_channels": 3, "hidden": [4]}}
    assert noted.unnamed == []
    others: list[partial[Any]] = [partial(digits, seed=1), partial(torch.nn.Sequential, torch.nn.ReLU())]
    for other in (*others, partial(dict, {"a": 1})):
        assert "partial" in noted.of({"net": other}, "model")["net"]
    assert noted.unnamed == ["model.net"] * 3
    noted.unnamed.clear()
    for value in ({3}, range(3), b"3", 3j, torch.float32, torch.Generator()):
        assert noted.of({"drop": value}, "model")["drop"] == repr(value)
    assert noted.unnamed == ["model.drop"] * 6
    plain = noted.of([np.float64(0.5), np.int64(3), signal.SIGINT, hetfl.Level("c", np.float64(0.25))], "x")
    assert yaml.safe_dump(plain, default_flow_style=True) == "[0.5, 3, 2, {width: 0.25}]\n"
