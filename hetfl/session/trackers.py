"""Trackers beside the run folder: hyper-parameters at the start, levels in one chart, figures at the end, and resuming.

Lightning's loggers of TensorBoard, Weights & Biases and MLflow get the columns of ``metrics.csv`` as the run goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.reading import parse_json, read_bytes
from hetfl.runs.flat_settings import flat_settings
from hetfl.runs.run_folder import RunFolder

FILE = "trackers.json"
"""File of a run folder: by class of logger, the arguments with which a resumed run goes on in the same place."""
LARGEST = 100_000
"""Maximum size of that file in bytes."""
LONGEST = 250
"""Characters of a hyper-parameter, the least that a tracker takes."""


class Trackers(Callback):
    """Gives the settings of a run to its loggers, and keeps where they write.

    Args:
        settings: returns the settings of a module's run; called only if there are loggers beside the run folder.
    """

    def __init__(self, settings: Callable[[FederatedModule], Mapping[str, Any]]) -> None:
        super().__init__()
        self._settings = settings

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the hyper-parameters, and write :data:`FILE`."""
        others = [each for each in trainer.loggers if not isinstance(each, RunFolder)]
        if not trainer.is_global_zero or not others:
            return
        module = cast(FederatedModule, pl_module)
        settings = hyperparameters(self._settings(module))
        for logger in others:
            logger.log_hyperparams(_new_ones(logger, settings))
            if isinstance(logger, TensorBoardLogger):
                _write_settings(logger)
                _overlay_levels(logger, module.objective.headline.name)
        if places := [place for logger in others if (place := _place(logger))]:
            for folder in (each for each in trainer.loggers if isinstance(each, RunFolder)):
                folder.write_file(FILE, json.dumps(places, indent=1).encode() + b"\n")


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings under names and with values that every tracker takes; null is left out.

    >>> hyperparameters({"model": {"class_path": "hetfl.FedAvg", "init_args": {"hooks": [{"x": 1}], "net": None}}})
    {'model': 'hetfl.FedAvg', 'model.hooks.0.x': '1'}
    """
    flat = {re.sub(r"\[(\d+)\]", r".\1", name): value for name, value in flat_settings(settings).items()}
    return {name: value[:LONGEST] for name, value in flat.items() if value != "null"}


def _new_ones(logger: Logger, settings: dict[str, str]) -> dict[str, str]:
    """Return the settings to log: MLflow refuses to change those of a run that goes on."""
    if not isinstance(logger, MLFlowLogger) or logger.run_id is None:
        return settings
    logged = logger.experiment.get_run(logger.run_id).data.params
    return {name: value for name, value in settings.items() if name not in logged}


def _write_settings(logger: TensorBoardLogger) -> None:
    """Write ``hparams.yaml`` again, which Lightning has written without settings before training."""
    (Path(logger.log_dir) / logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
    logger.save()


def _overlay_levels(logger: TensorBoardLogger, headline: str) -> None:
    """Add a chart with the curves of all levels to TensorBoard's tab of custom scalars."""
    charts = {f"{stage} {headline}": ["Multiline", [f"{stage}/{headline}_by_level/.*"]] for stage in ("val", "test")}
    logger.experiment.add_custom_scalars({"levels": charts})


def _place(logger: Logger) -> dict[str, Any] | None:
    """Return a logger's class and the arguments that make it go on; None for a logger that cannot."""
    going_on: dict[str, Any]
    if isinstance(logger, TensorBoardLogger):
        going_on = {"version": logger.version}
    elif isinstance(logger, WandbLogger):
        going_on = {"id": logger.experiment.id, "resume": "allow"}
    elif isinstance(logger, MLFlowLogger):
        going_on = {"run_id": logger.run_id}
    else:  # Lightning's CSV logger deletes the file of a run that it goes on with
        return None
    folder = {} if logger.save_dir is None else {"save_dir": str(Path(logger.save_dir).absolute())}
    return {"class": type(logger).__name__, "arguments": {**going_on, **folder}}


def places_of(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the classes of the loggers of a run, and the arguments with which they go on; empty if there are none.

    Raises:
        ConfigurationError: the file is not such a file.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        places = parse_json(read_bytes(path, LARGEST), LARGEST)
        return [(str(place["class"]), dict(place["arguments"])) for place in places]
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"Expected the trackers of a run in {path} but got: {error}") from None


def send_figures(loggers: Iterable[Logger], files: Sequence[Path], round: int) -> None:
    """Send figures as images to the loggers that take images.

    Args:
        loggers: of the run.
        files: PNG files.
        round: number of rounds done.
    """
    for logger in loggers:
        for file in files:
            if isinstance(logger, TensorBoardLogger):
                pixels_HWC = np.asarray(Image.open(file).convert("RGB"))
                logger.experiment.add_image(f"plots/{file.stem}", pixels_HWC, round, dataformats="HWC")
                logger.experiment.flush()
            elif isinstance(logger, WandbLogger):
                logger.log_image(f"plots/{file.stem}", [str(file)])
            elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
                logger.experiment.log_artifact(logger.run_id, str(file), "plots")
