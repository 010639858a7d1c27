"""A run folder, read back."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from hetfl.errors import ConfigurationError


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        metrics: one row per round, with the columns of ``metrics.csv``; NaN where a round did not report.
        config: the content of ``config.yaml``; empty for a run that was started from Python.
    """

    folder: Path
    metrics: pd.DataFrame
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels with an accuracy of their own, in the order of their columns."""
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
        ConfigurationError: ``metrics.csv`` is missing, has no rows or is not a table of rounds, or ``config.yaml``
            cannot be read.
    """
    folder = Path(folder)
    return Run(folder, _read_metrics(folder / "metrics.csv"), _read_config(folder / "config.yaml"))


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
