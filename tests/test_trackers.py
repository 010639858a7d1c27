"""Trackers beside the run folder: what they hold after a run and after a resumed run, read back from their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hetfl.cli import main
from hetfl.errors import ConfigurationError
from hetfl.session.drawing import Redrawing
from hetfl.session.trackers import hyperparameters, places_of
from tests.demo_cases import DEMO, FEW

ROUNDS = [*FEW, "--model.net.hidden=[4,8]", "--trainer.check_val_every_n_epoch=1", "--final_test=false"]
LEVEL = "val/accuracy_by_level/e"


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_twice(
    logger: str, monkeypatch: pytest.MonkeyPatch, end: Callable[[], object] = lambda: None, **arguments: Any
) -> tuple[Path, list[float]]:
    """Run one round with a logger, and resume for a second from another folder; return the run folder and scores.

    ``end`` does what the end of a process does.
    """
    settings = {"trainer": {"logger": {"class_path": f"lightning.pytorch.loggers.{logger}", "init_args": arguments}}}
    Path("logger.yaml").write_text(yaml.safe_dump(settings))
    main(["fit", *DEMO, *ROUNDS, "--trainer.max_epochs=1", "-c", "logger.yaml"])
    (folder,) = Path("runs/run").resolve().iterdir()
    end()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    main(["resume", str(folder), "--trainer.max_epochs=2"])
    monkeypatch.chdir("..")
    assert not list(Path("elsewhere").iterdir())
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["step"].tolist() == [0, 1]
    return folder, metrics[LEVEL].tolist()


def test_tensorboard_has_rounds_levels_settings_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scores = run_twice("TensorBoardLogger", monkeypatch, save_dir="tb")
    assert (folder / "checkpoints/last.ckpt").is_file()
    (version,) = Path("tb").glob("*/version_*")
    assert yaml.safe_load((version / "hparams.yaml").read_text())["trainer.max_epochs"] == "2"
    events = EventAccumulator(str(version))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars(LEVEL)] == [
        (round, pytest.approx(score)) for round, score in enumerate(scores)
    ]
    assert "plots/accuracy_over_rounds" in events.Tags()["images"]
    assert b"val/accuracy_by_level/.*" in events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of MLflow's own code
@pytest.mark.parametrize("uri", ["sqlite:///ml.db", None])
def test_mlflow_has_rounds_levels_settings_and_figures(uri: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    absolute = None if uri is None else f"sqlite:///{Path.cwd()}/ml.db"
    _, scores = run_twice("MLFlowLogger", monkeypatch, tracking_uri=absolute, save_dir="mlruns",
                          artifact_location=None if uri is None else str(Path.cwd() / "artifacts"))  # fmt: skip
    client = tracking.MlflowClient(tracking_uri=absolute or "mlruns")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, LEVEL)] == [
        (round, pytest.approx(score)) for round, score in enumerate(scores)
    ]
    assert run.data.params["model.uplink.compressor.quantiser.bits"] == "4"
    assert "plots/accuracy_over_rounds.png" in [each.path for each in client.list_artifacts(run.info.run_id, "plots")]


def test_a_resumed_run_goes_on_in_its_run_of_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_twice("WandbLogger", monkeypatch, wandb.finish, save_dir="wb", offline=True, project="hetfl")
    wandb.finish()
    folders = sorted(Path("wb/wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    assert all(list(folder.glob("files/media/images/plots/accuracy_over_rounds*.png")) for folder in folders)


class Look(pl.Callback):
    """Notes the rounds that begin with a figure in the run folder."""

    drawn: list[int] = []  # noqa: RUF012

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if Path(f"{trainer.log_dir}/plots/accuracy_over_rounds.png").is_file():
            self.drawn.append(trainer.current_epoch)


def test_figures_are_drawn_while_a_run_trains() -> None:
    Look.drawn.clear()
    look = f"--trainer.callbacks+={__name__}.Look"
    main(["fit", *DEMO, *ROUNDS, "--trainer.max_epochs=3", "--plots_every=2", "--plots=false", look])
    assert Look.drawn == [2]
    with pytest.raises(ConfigurationError, match="plots_every of at least 1 round but got -1"):
        Redrawing(-1)


def test_a_damaged_file_of_trackers_is_refused(tmp_path: Path) -> None:
    assert places_of(tmp_path) == []
    for text in ("[{}]", "[1]", "{", '[{"class": "A", "arguments": 3}]'):
        (tmp_path / "trackers.json").write_text(text)
        with pytest.raises(ConfigurationError, match="Expected the trackers of a run in .*trackers.json but got"):
            places_of(tmp_path)


def test_names_of_settings_are_those_that_trackers_take() -> None:
    settings = {"trainer": {"callbacks": [{"class_path": "a.B", "init_args": {"c": None, "d": "x" * 9999}}]}}
    assert {name: len(text) for name, text in hyperparameters(settings).items()} == {
        "trainer.callbacks.0": 3,
        "trainer.callbacks.0.d": 250,
    }
