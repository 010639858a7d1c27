"""``hetfl resume``: continues the rounds of a run, or completes its end if all rounds are done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from hetfl.analysis.pictures import expected_pictures
from hetfl.analysis.runs import read_metrics
from hetfl.cli.app import FederatedCLI
from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.run_folder import ended_early, note_end
from hetfl.session.callbacks import has_ended
from hetfl.session.defaults import drop_previous

TABLE = "metrics.csv"
OF_THE_END = ("--final_test", "--plots")
"""Settings of the end of a run; with any other setting ``resume`` trains."""
NOTE, TEST, PICTURES = "note of an early end", "test", "pictures"


class ResumedRun(FederatedCLI):
    """A CLI that trains like ``fit`` if rounds are left, and otherwise tests and draws if that is missing.

    Args:
        args: arguments of the CLI.
        folder: the run folder.
        settings: the arguments after the run folder.
        kwargs: keyword arguments of the CLI.
    """

    def __init__(self, *args: Any, folder: Path, settings: Sequence[str], **kwargs: Any) -> None:
        self.folder, self.settings = folder, settings
        self.missing: list[str] | None = None
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Check the settings, and determine the missing steps."""
        super().before_instantiate_classes()
        if all(setting.partition("=")[0] in OF_THE_END for setting in self.settings if setting.startswith("-")):
            self.missing = missing_at_end(self.folder, self.config["fit"])

    def instantiate_classes(self) -> None:
        """Make data, model and trainer if they are needed."""
        if self.missing is None or TEST in self.missing:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if self.missing is None:
            super()._run_subcommand(subcommand)
        elif not self.missing:
            print(f"nothing is missing: {self.folder} has all rounds, and the results of the end")
        else:
            if NOTE in self.missing:
                note_end(self.folder, _rounds(self.folder), self.config["fit"].trainer.max_epochs)
            if TEST in self.missing:
                self.final_test(self.config["fit"].ckpt_path)
            if PICTURES in self.missing:
                self.draw(self.folder, trained=TEST in self.missing)
            drop_previous([self.folder], SafeCheckpointIO())


def missing_at_end(folder: Path, config: Namespace) -> list[str] | None:
    """Return the missing steps at the end of a run whose rounds are done, in order; None: rounds are left.

    Args:
        folder: the run folder.
        config: the settings of the run.

    Raises:
        ConfigurationError: the checkpoint cannot be read, or the table lacks rounds before the checkpoint.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(config.ckpt_path)
    saved, done, asked = checkpoint.get("hetfl", {}).get("version", 0), _rounds(folder), config.trainer.max_epochs
    if not has_ended(checkpoint, asked) or done > saved:  # with more rows the run has been continued
        return None
    if done < saved:
        raise ConfigurationError(f"Expected {saved} rounds in {folder / TABLE}, as in the checkpoint, but got {done}")
    to_note = asked is not None and done < asked and not ended_early(folder, done, asked)
    to_test = bool(config.final_test) and not _is_tested(folder)
    to_draw = bool(config.plots) and (to_test or not _is_drawn(folder))
    return [NOTE] * to_note + [TEST] * to_test + [PICTURES] * to_draw


def _rounds(folder: Path) -> int:
    metrics = read_metrics(folder / TABLE)
    return 0 if metrics.empty else int(metrics["step"].iloc[-1]) + 1


def _is_tested(folder: Path) -> bool:
    last = read_metrics(folder / TABLE).filter(regex="^test/").iloc[-1]
    return bool(last.notna().any()) and (folder / "clients.csv").is_file()


def _is_drawn(folder: Path) -> bool:
    """Return whether all figures exist and none is older than the table that they show."""
    written = (folder / TABLE).stat().st_mtime_ns
    return all(path.is_file() and path.stat().st_mtime_ns >= written for path in expected_pictures(folder))
