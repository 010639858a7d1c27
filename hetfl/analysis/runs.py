"""A run folder, read back."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hetfl.errors import ConfigurationError

HEAD = "head_"
"""What the names of heads begin with, and those of levels do not."""

LEVEL_COLUMNS = (
    *("level", "width", "depth", "parameters", "forward_flops", "training_flops"),
    *("down_bytes", "up_bytes"),
)
CLIENT_COLUMNS = ("client", "level", "train_samples", "test_samples", "accuracy", "own_accuracy")


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        metrics: one row per round, with the columns of ``metrics.csv``; NaN where a round did not report.
        config: the content of ``config.yaml``; empty for a run that was started from Python.
        level_table: one row per level, with the columns of ``levels.csv``; None where the run has no such file.
        clients: one row per client, with the columns of ``clients.csv``; None where the run has no such file.
    """

    folder: Path
    metrics: pd.DataFrame
    config: dict[str, Any] = field(default_factory=dict)
    level_table: pd.DataFrame | None = None
    clients: pd.DataFrame | None = None

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels with an accuracy of their own, in the order of their columns."""
        return tuple(name for name in self._parts() if not name.startswith(HEAD))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the global model's heads with an accuracy of their own, the shallowest first."""
        return tuple(name for name in self._parts() if name.startswith(HEAD))

    def _parts(self) -> tuple[str, ...]:
        families = ("val/accuracy/", "test/accuracy/")
        names = (
            str(column).removeprefix(family)
            for family in families
            for column in self.metrics.columns
            if str(column).startswith(family)
        )
        return tuple(dict.fromkeys(names))

    def series(self, column: str) -> pd.Series[float]:
        """Return a column as float64.

        Raises:
            ConfigurationError: the run has no such column.
        """
        if column not in self.metrics.columns:
            raise ConfigurationError(f"Expected column {column!r} in {self.folder / 'metrics.csv'} but got none")
        return self.metrics[column].astype("float64")


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    A last line of ``metrics.csv`` without its end, as a killed process can leave one, is no row.

    Raises:
        ConfigurationError: ``metrics.csv`` is missing, has no rows or is not a table of rounds, or another of the run's
            files cannot be read.
    """
    folder = Path(folder)
    return Run(
        folder,
        _read_metrics(folder / "metrics.csv"),
        _read_config(folder / "config.yaml"),
        _read_table(folder / "levels.csv", LEVEL_COLUMNS),
        _read_table(folder / "clients.csv", CLIENT_COLUMNS),
    )


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        # A level may be called NA: only an empty cell is none.
        table = pd.read_csv(path, dtype={"level": str}, keep_default_na=False, na_values=[""])
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Expected a table in {path} but got: {' '.join(str(error).split())}") from error
    for column in columns:
        if column not in table.columns:
            raise ConfigurationError(
                f"Expected a column {column!r} in {path} but got {', '.join(map(str, table.columns))}"
            )
        if column not in ("level", "width", "depth") and not pd.api.types.is_numeric_dtype(table[column]):
            raise ConfigurationError(f"Expected numbers in column {column!r} of {path} but got text")
    return table


def _read_metrics(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ConfigurationError(f"Expected a run folder with a metrics.csv but got no file {str(path)!r}")
    whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0]
    try:
        metrics = pd.read_csv(io.StringIO(whole_lines))
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ConfigurationError(
            f"Expected a table of rounds in {path} but got: {' '.join(str(error).split())}"
        ) from error
    if "step" not in metrics.columns:
        raise ConfigurationError(f"Expected a column 'step' in {path} but got {', '.join(map(str, metrics.columns))}")
    if metrics.empty:
        raise ConfigurationError(f"Expected at least one round in {path} but got a header alone")
    return metrics


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"Expected YAML in {path} but got: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"Expected a mapping in {path} but got {type(config).__name__}")
    return config
