"""The trainer for Python, with the output, the run folder and the checkpoints of the command line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

import hetfl
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.runs.run_folder import RunFolder, note_end
from hetfl.session import defaults
from hetfl.session.drawing import folders_of, print_figures
from hetfl.session.quiet import quiet
from hetfl.session.settings import Settings
from hetfl.session.trackers import Trackers, send_figures
from hetfl.snapshots import Snapshots


class SavedSettings(Callback):
    """Writes ``config.yaml`` into the run folders before training.

    Args:
        settings: returns the settings of a module's run, and its ``config.yaml``.
    """

    def __init__(self, settings: Callable[[FederatedModule], tuple[Mapping[str, Any], bytes]]) -> None:
        super().__init__()
        self._settings = settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        content = self._settings(cast(FederatedModule, pl_module))[1]
        for folder in (each for each in trainer.loggers if isinstance(each, RunFolder)):
            folder.write_file("config.yaml", content)


class Trainer(pl.Trainer):
    """Lightning's trainer with a run folder, progress, summary and safe checkpoints, as ``hetfl fit`` has them.

    :meth:`fit` trains, tests the last model and draws the figures. The run folder is kept beside any other logger.

    Args:
        logger: loggers; True: the run folder alone; False: none. A list may hold a :class:`hetfl.runs.RunFolder`.
        callbacks: further callbacks.
        plugins: of Lightning; one that writes checkpoints replaces that of hetfl.
        final_test: test the last model at the end of :meth:`fit`.
        plots: draw the figures of the run at the end of :meth:`fit`.
        plots_every: number of rounds from one drawing of the figures to the next while it trains; 0: none.
        settings: other arguments of Lightning's trainer; ``max_epochs`` is the number of rounds.
    """

    def __init__(
        self,
        *,
        logger: Logger | Iterable[Logger] | bool = True,
        callbacks: list[Callback] | Callback | None = None,
        plugins: Any = None,
        final_test: bool = True,
        plots: bool = True,
        plots_every: int = 0,
        **settings: Any,
    ) -> None:
        self._given, self._stop = dict(settings), StopAtRoundEnd()
        self._at_end = {"final_test": final_test, "plots": plots, "plots_every": plots_every}
        loggers = [] if isinstance(logger, bool) else [logger] if isinstance(logger, Logger) else list(logger)
        loggers = [] if logger is False else defaults.with_run_folder(loggers)
        users = defaults.listed(callbacks)
        others = {"trainer.plugins": plugins, "trainer.logger": [e for e in loggers if not isinstance(e, RunFolder)]}
        self._snapshots = next((each for each in users if isinstance(each, Snapshots)), None)
        self._callbacks, unnamed = _named(users)
        self._unnamed = [*unnamed, *(key for key, given in others.items() if given)]
        plugins, self._safe = defaults.with_safe_checkpoints(defaults.listed(plugins))
        checkpoints = settings.get("enable_checkpointing") is not False and bool(loggers)
        settings["enable_checkpointing"] = checkpoints
        progress = settings.get("enable_progress_bar") is not False
        made = defaults.callbacks_of_training(
            users, self._stop, progress=progress, checkpoints=checkpoints, summary=not final_test, every=plots_every
        )
        made += [SavedSettings(self.settings_of), Trackers(lambda model: self.settings_of(model)[0])]
        with quiet():
            super().__init__(
                **{**defaults.SETTINGS, **settings}, logger=loggers, callbacks=[*users, *made], plugins=plugins
            )

    def fit(
        self,
        model: FederatedModule,  # type: ignore[override]
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train; then test the last model and draw the figures, if these are wanted.

        Args:
            model: the module.
            train_dataloaders: not used: clients train.
            val_dataloaders: not used: the data has the validation samples.
            datamodule: the data.
            ckpt_path: a checkpoint to go on from; one of a run folder goes on in that folder.
            weights_only: as in Lightning's ``fit``.

        Raises:
            ConfigurationError: the trainer has already done the rounds of another run.
            KeyboardInterrupt: Ctrl-C stopped the run after a round, which is in its checkpoint.
        """
        if ckpt_path is None:
            self._check_new(model)
        elif (Path(ckpt_path).parent.parent / "metrics.csv").is_file():
            for folder in (each for each in self.loggers if isinstance(each, RunFolder)):
                folder.go_on_in(Path(ckpt_path).parent.parent)
        with quiet():
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
        if self._stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stop.signal is not None:
            sys.exit(128 + self._stop.signal)
        self._finish(model)

    def _check_new(self, model: FederatedModule) -> None:
        """Refuse a second run: its rows would replace those of the first, or there would be no round left.

        A run that Ctrl-C stopped may go on with its own module.
        """
        done, rounds, steps = self.current_epoch, self.max_epochs, self.max_steps
        ended = (rounds is not None and 0 <= rounds <= done) or 0 <= steps <= self.global_step
        if done and (ended or model.models.version < done):
            raise ConfigurationError(f"Expected a new trainer for another run but got one that has done {done} rounds")

    def _finish(self, model: FederatedModule) -> None:
        folders = folders_of(self.loggers)
        for folder in folders:
            note_end(folder, model.models.version, self.max_epochs or 0)
        if self._at_end["final_test"]:
            self.test(model, datamodule=model.data)
        for folder in folders if self._at_end["plots"] else ():
            send_figures(self.loggers, print_figures(folder), model.models.version)
        defaults.drop_previous(folders, self._safe)

    def test(self, *args: Any, **settings: Any) -> Any:
        """Test as Lightning does; the summary has the results, by level instead of by loader."""
        with quiet():
            return super().test(*args, **{"verbose": False, **settings})

    def validate(self, *args: Any, **settings: Any) -> Any:
        """Validate as Lightning does; the summary has the results, by level instead of by loader."""
        with quiet():
            return super().validate(*args, **{"verbose": False, **settings})

    def settings_of(self, model: FederatedModule) -> tuple[dict[str, Any], bytes]:
        """Return the settings of a run, and its ``config.yaml``, whose first lines name what it does not hold.

        Args:
            model: the module.
        """
        noted = Settings()
        trainer = {key: noted.of(value, f"trainer.{key}") for key, value in self._given.items()}
        trainer |= {"callbacks": self._callbacks} if self._callbacks else {}
        noted.unnamed += self._unnamed
        settings: dict[str, Any] = {"seed_everything": model.seed, "trainer": trainer}
        for part, made in (("data", model.data), ("model", model)):
            settings[part] = noted.of(made, part)
            seed = settings[part].get("init_args", {}).pop("seed", 0)
            if seed != model.seed:
                settings[f"{part}_seed"] = seed
        settings |= self._at_end
        if self._snapshots is not None:
            settings["snapshots"] = {"every": self._snapshots.every}
        head = f"# hetfl {hetfl.__version__}, written by hetfl.Trainer\n"
        if noted.unnamed:
            head += f"# not complete, as these are no settings: {', '.join(noted.unnamed)}\n"
        return settings, (head + yaml.safe_dump(settings, sort_keys=False)).encode()


def _named(callbacks: list[Callback]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the settings of callbacks, and the keys of those from whose settings the command line makes no such one.

    Classes of a script or of a module beside it have no name that is known elsewhere. Some of Lightning's callbacks do
    not keep what they were given, as EarlyStopping, which changes the sign of ``min_delta``.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    named, unnamed = [], []
    for number, callback in enumerate(callbacks):
        if isinstance(callback, Snapshots):
            continue  # the command line has its own
        noted, key = Settings(), f"trainer.callbacks[{number}]"
        settings = noted.of(callback, key)
        if not noted.unnamed and _is_known(callback) and _made(settings, parser) == settings:
            named.append(settings)
        else:
            unnamed.append(key)
    return named, unnamed


def _is_known(callback: Callback) -> bool:
    return type(callback).__module__.partition(".")[0] in ("hetfl", "lightning", "pytorch_lightning")


def _made(settings: dict[str, Any], parser: ArgumentParser) -> dict[str, Any] | None:
    """Return the settings of the callback that the command line makes from settings; None if it makes none."""
    try:
        made = parser.instantiate(parser.parse_object({"callback": settings})).callback
    except (ArgumentError, MisconfigurationException, TypeError, ValueError):
        return None
    return cast(dict[str, Any], Settings().of(made, "callback"))
