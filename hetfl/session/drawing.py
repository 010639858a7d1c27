"""The figures of a run in its folder: at the end, and every few rounds while it trains."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from hetfl.errors import ConfigurationError
from hetfl.runs import RunFolder


def draw(folder: str | Path) -> list[Path]:
    """Draw the figures of a run into its folder ``plots``; return their PNG files.

    Raises:
        ConfigurationError: the tables of the run cannot be drawn: it has no validation yet, for example.
        OSError: a figure cannot be written.
    """
    from hetfl import analysis  # with pandas and matplotlib, which a process that draws nothing does without

    drawn = [
        *analysis.plot_run(folder),
        *analysis.plot_clusters(folder),
        *analysis.draw_budget(folder),
        *analysis.draw_assignment(folder),
    ]
    drawn += [*analysis.draw_sparsity(folder), *analysis.draw_values(folder), *analysis.draw_timeline(folder)]
    return [path for path in drawn if path.suffix == ".png"]


def print_figures(folder: str | Path) -> list[Path]:
    """Draw the figures of a run, and print their folder; a failure is printed, and fails no run.

    Returns:
        The PNG files.
    """
    drawn: list[Path] = []
    try:
        drawn = draw(folder)
        text = f"{Path(folder) / 'plots'} ({len(drawn)} figures)"
    except ConfigurationError as error:
        text = f"none: {error}"
    except OSError as error:  # hetfl resume draws them once there is space
        text = f"none: {error.filename} not written ({error.strerror})"
    print(f"{'pictures':<18}{text}")
    return drawn


def folders_of(loggers: Iterable[Logger]) -> list[Path]:
    """Return the run folders among loggers; empty on ranks other than zero."""
    folders = [each.save_dir for each in loggers if isinstance(each, RunFolder)]
    return [Path(folder) for folder in folders if folder is not None]


class Redrawing(Callback):
    """Draws the figures of a run while it trains.

    Args:
        every: number of rounds from one drawing to the next.

    Raises:
        ConfigurationError: ``every`` is below 1.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        if every < 1:
            raise ConfigurationError(f"Expected plots_every of at least 1 round but got {every}")
        self.every = every

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures of the run folders, if a drawing is due; rank zero does."""
        if (trainer.current_epoch + 1) % self.every or not trainer.is_global_zero:
            return
        for folder in folders_of(trainer.loggers):
            try:
                draw(folder)
            except ConfigurationError:  # there is no validation yet
                continue
            except OSError as error:
                rank_zero_warn(f"{error.filename} not written ({error.strerror}); training goes on")
