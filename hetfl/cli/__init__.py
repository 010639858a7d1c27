"""The command line: ``hetfl fit | resume | validate | test | describe``, Lightning's CLI over stacked YAML files."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from hetfl.analysis import plot_run
from hetfl.checkpoint import SafeCheckpointIO
from hetfl.cli.errors import condense
from hetfl.data import FederatedDataModule
from hetfl.display import RoundProgress, RunSummary, describe
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.interrupt import StopAtRoundEnd
from hetfl.run_folder import RunFolder


class OneLineParser(LightningArgumentParser):
    """Says what is wrong in one line, and exits with status 2."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print the innermost reason of jsonargparse's message and where it lies."""
        self.exit(2, f"hetfl: error: {condense(message)}\n")


class FederatedTrainer(Trainer):
    """Lightning's Trainer with one more verb."""

    def describe(self, model: FederatedModule, datamodule: LightningDataModule) -> None:
        """Print levels, parameters, FLOPs and bytes per round, and who has what data; run nothing."""
        self.strategy.connect(model)
        self.state.fn = None
        model.trainer = self
        self.datamodule = datamodule
        datamodule.prepare_data()
        datamodule.setup("fit")
        model.setup("fit")
        describe(model, model.data)


class FederatedCLI(LightningCLI):
    """``model`` and ``data`` are given by class; run folder, progress, summary and checkpoints are there by default."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is ours, and let one seed serve model and data."""
        parser.add_argument("--final_test", type=bool, default=True, help="Test the last model at the end of fit.")
        parser.add_argument("--plots", type=bool, default=True, help="Draw the run's pictures at the end of fit.")
        for part in ("model", "data"):
            parser.link_arguments("seed_everything", f"{part}.init_args.seed", compute_fn=_seed)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs and which of their arguments are not the user's."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "describe": {"model", "datamodule"},
        }

    def before_instantiate_classes(self) -> None:
        """Check what Lightning would find out late, and go on in the old run folder when a run is resumed.

        Raises:
            ConfigurationError: the checkpoint is missing, or the precision is 16-mixed.
        """
        config = self.config[self.subcommand]
        checkpoint, run_logger = config.get("ckpt_path"), config.trainer.logger
        if str(config.trainer.precision).startswith("16"):
            # Lightning would take bf16 instead where the device has no float16, with a warning.
            raise ConfigurationError(
                f"Expected trainer.precision 32-true, bf16-mixed or 64-true but got {config.trainer.precision}"
            )
        if checkpoint and not Path(checkpoint).is_file():
            raise ConfigurationError(
                f"Expected a checkpoint file as ckpt_path but got {checkpoint}, which is not there"
            )
        if self.subcommand != "fit" or not checkpoint or not isinstance(run_logger, Namespace):
            return
        folder = Path(checkpoint).parent.parent
        if run_logger.class_path.endswith("RunFolder") and (folder / "metrics.csv").is_file():
            run_logger.init_args.folder = str(folder)

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            ConfigurationError: one of their constructors refused its arguments.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a constructor says into a tree of alternatives that it tried.
            if "Union subtypes" not in str(error):
                raise
            raise ConfigurationError(condense(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer with our callbacks, less those that the user switched off."""
        config = self.config_init[self.subcommand].trainer
        progress = [RoundProgress()] if config.enable_progress_bar is not False else []
        checkpoints = [_checkpoint()] if config.enable_checkpointing is not False else []
        own = config.callbacks or []
        own = own if isinstance(own, list) else [own]
        defaults: list[Callback] = [
            RunSummary(after_fit=self.subcommand != "fit" or not self.config[self.subcommand].final_test)
        ]
        self.stop = StopAtRoundEnd()
        defaults.append(self.stop)
        for callbacks, kind in ((progress, ProgressBar), (checkpoints, ModelCheckpoint)):
            defaults += [] if any(isinstance(callback, kind) for callback in own) else callbacks
        self.trainer_defaults["callbacks"] = defaults
        plugins = config.plugins or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, SafeCheckpointIO()]
        if self.subcommand == "describe":
            kwargs |= {"logger": False, "enable_checkpointing": False}
            self.trainer_defaults["callbacks"] = []
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Test the last model and draw the pictures, if asked."""
        assert self.trainer is not None
        if self.stop.interrupted:
            sys.exit(128 + signal.SIGINT)
        if self.config[self.subcommand].final_test:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        folders = [run_logger.save_dir for run_logger in self.trainer.loggers if isinstance(run_logger, RunFolder)]
        if self.config[self.subcommand].plots:
            for folder in folders:
                if folder is not None:
                    pictures = [path for path in plot_run(folder) if path.suffix == ".png"]
                    print(f"{'pictures':<18}{' '.join(map(str, pictures))}")


def _seed(seed: int | bool) -> int:
    if isinstance(seed, bool):
        raise ValueError(f"Expected a whole number for seed_everything but got {seed}")
    return seed


def _resumed(args: list[str]) -> list[str]:
    """Return ``resume RUN ...`` in long form: fit with the run's configuration and checkpoint; else what was given.

    Raises:
        ConfigurationError: no run folder is named, or it has no configuration.
    """
    if args[:1] != ["resume"]:
        return args
    folder = Path(args[1]) if len(args) > 1 else None
    if folder is None or not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"Expected a run folder with a config.yaml after resume but got {folder or 'nothing'}")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return ["fit", "-c", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint), *args[2:]]


def _checkpoint() -> ModelCheckpoint:
    """Return the callback that keeps ``checkpoints/last.ckpt``, written after every round's validation."""
    return ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


def _quiet() -> None:
    """Silence what Lightning says about training in general and what is not so here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*litlogger.*",
        ".*treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: the arguments; None: those of the process.
    """
    _quiet()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes of the user's own, beside where the command is typed
    try:
        if args is None:
            sys.argv[1:] = _resumed(sys.argv[1:])
        FederatedCLI(
            FederatedModule,
            FederatedDataModule,
            trainer_class=FederatedTrainer,
            trainer_defaults={
                "logger": {"class_path": "hetfl.run_folder.RunFolder"},
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 1,
                "enable_model_summary": False,
                "use_distributed_sampler": False,
            },
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            args=None if args is None else _resumed(list(args)),
        )
    except (ConfigurationError, MisconfigurationException) as error:
        sys.stderr.write(f"hetfl: error: {condense(str(error))}\n")
        sys.exit(2)
