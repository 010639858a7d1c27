"""The callback of the command line: it saves the configuration."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from hetfl.cli.checks import run_folders
from hetfl.cli.paths import make_absolute
from hetfl.files import write_whole
from hetfl.runs import RunFolder


class SaveRunConfig(SaveConfigCallback):
    """Saves the configuration when training starts, so that an earlier failure does not change an old folder."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing, because a checkpoint may still be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``config.yaml`` atomically."""
        folders = [logger for logger in trainer.loggers if isinstance(logger, RunFolder)]
        folder = trainer.log_dir  # on every rank: Lightning broadcasts it
        if folder is None or not trainer.loggers or not trainer.is_global_zero:
            return
        content = dumped(self.parser, self.config).encode()
        if folders:
            folders[0].write_file(self.config_filename, content)
        else:
            write_whole(Path(folder) / self.config_filename, content)


def as_new_run(config: Namespace) -> Namespace:
    """Return a configuration that starts a new run in any directory: without resuming, and with absolute paths."""
    config = deepcopy(config)
    config.pop("ckpt_path", None)
    for part in ("data", "model"):
        if part in config:
            make_absolute(config[part])
    for folder in run_folders(config):
        folder.init_args.pop("folder", None)
    return config


def dumped(parser: ArgumentParser, config: Namespace) -> str:
    """Return a configuration that starts a new run, as YAML, without checking again what the parser has checked.

    Args:
        parser: the parser of the configuration.
        config: the configuration.
    """
    text: str = parser.dump(as_new_run(config), skip_unset=False, skip_validation=True)
    return text
