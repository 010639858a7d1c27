"""``hetfl resume``: goes on with a run's rounds, or does what is missing of its end once all of them are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from hetfl.analysis.pictures import expected_pictures
from hetfl.analysis.runs import read_metrics
from hetfl.checkpoint import SafeCheckpointIO
from hetfl.cli.app import FederatedCLI
from hetfl.cli.callbacks import has_ended
from hetfl.errors import ConfigurationError

OF_THE_END = ("--final_test", "--plots")
"""Settings of a run's end: with others, ``resume`` trains."""
TEST, PICTURES = "test", "pictures"


class ResumedRun(FederatedCLI):
    """Trains as ``fit`` does if rounds are left; else tests and draws, if that was not done.

    Args:
        args: those of the CLI.
        folder: the run folder.
        settings: the arguments that follow it.
        kwargs: those of the CLI.
    """

    def __init__(self, *args: Any, folder: Path, settings: Sequence[str], **kwargs: Any) -> None:
        self.folder, self.settings = folder, settings
        self.missing: list[str] | None = None
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Check the settings, and find out what is left to do."""
        super().before_instantiate_classes()
        if all(setting.partition("=")[0] in OF_THE_END for setting in self.settings if setting.startswith("-")):
            self.missing = missing_at_end(self.folder, self.config["fit"])

    def instantiate_classes(self) -> None:
        """Make data, model and trainer, if there is something for them to do."""
        if self.missing is None or TEST in self.missing:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if self.missing is None:
            super()._run_subcommand(subcommand)
        elif not self.missing:
            print(f"nothing is missing: {self.folder} has its rounds, and all that follows them")
        else:
            if TEST in self.missing:
                self.test(self.config["fit"].ckpt_path)
            if PICTURES in self.missing:
                self.draw(self.folder)


def missing_at_end(folder: Path, config: Namespace) -> list[str] | None:
    """Return what a run whose rounds are done lacks, in the order in which it is to be done; None: rounds are left.

    Args:
        folder: the run folder.
        config: the run's settings.

    Raises:
        ConfigurationError: the checkpoint cannot be read, or the run's table lacks rounds before it.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(config.ckpt_path)
    rounds = checkpoint.get("hetfl", {}).get("version", 0)
    table = folder / "metrics.csv"
    metrics = read_metrics(table)
    rows = 0 if metrics.empty else int(metrics["step"].iloc[-1]) + 1
    if not has_ended(checkpoint, config.trainer.max_epochs) or rows > rounds:  # with more rows it went on already
        return None
    if rows < rounds:
        raise ConfigurationError(f"Expected {rounds} rounds in {table}, as in the checkpoint, but got {rows}")
    tested = metrics.filter(regex="^test/").iloc[-1].notna().any() and (folder / "clients.csv").is_file()
    drawn = all(
        path.is_file() and path.stat().st_mtime_ns >= table.stat().st_mtime_ns for path in expected_pictures(folder)
    )
    to_test = bool(config.final_test) and not tested
    return [TEST] * to_test + [PICTURES] * (bool(config.plots) and (to_test or not drawn))
