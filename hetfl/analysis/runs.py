"""A reader for run folders."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hetfl.analysis.clusters import load_clusters
from hetfl.analysis.columns import ADDED, CLIENT_RULES, LEVEL_RULES, METRIC_RULES, NUMBER, SCORES, SHARE, TOTAL, Rule
from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, LARGEST_TEXT, TooMuch, parse_yaml, read_bytes
from hetfl.runs.about import UNKNOWN, About, about_in
from hetfl.runs.headline import ACCURACY, Headline, headline_in
from hetfl.runs.metrics_file import HEAD, present_name

MAPPINGS = ("trainer", "model", "data")
"""Settings of ``config.yaml`` that are mappings."""


@dataclass(frozen=True)
class Run:
    """The contents of a run folder.

    Attributes:
        folder: the folder.
        metrics: one row per round, with the columns of ``metrics.csv``; NaN where a round has no value.
        config: the content of ``config.yaml``; empty for a run that was started from Python.
        level_table: one row per level, with the columns of ``levels.csv``; None without such a file.
        clients: one row per client, with the columns of ``clients.csv``; None without such a file.
        clusters: one row per change of the cluster of a client, with the columns of ``clusters.csv``; None for a run
            without clusters.
        headline: the score by which models are compared.
        about: version, date, command and machine of the run, and its numbers of samples, as far as they are known.
        nan_rounds: by column of ``metrics.csv`` the rounds whose value is ``nan``; an empty cell is no value.
    """

    folder: Path
    metrics: pd.DataFrame
    config: dict[str, Any] = field(default_factory=dict)
    level_table: pd.DataFrame | None = None
    clients: pd.DataFrame | None = None
    clusters: pd.DataFrame | None = None
    headline: Headline = ACCURACY
    about: About = UNKNOWN
    nan_rounds: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @property
    def chance(self) -> float | None:
        """The score of guessing one of K classes, 1/K; None if it is unknown."""
        classes = self.about.classes
        return 1 / classes if classes and self.headline.name == "accuracy" else None

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels that have a score, in the order of their columns."""
        return tuple(name for name in self._parts() if not name.startswith(HEAD))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads of the global model that have a score, the shallowest first."""
        return tuple(name for name in self._parts() if name.startswith(HEAD))

    def _parts(self) -> tuple[str, ...]:
        families = {
            f"{stage}/{self.headline.name}_by_{kind}/": mark
            for stage in ("val", "test")
            for kind, mark in (("level", ""), ("head", HEAD))
        }
        names = (
            mark + str(column).removeprefix(family)
            for family, mark in families.items()
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
    """Read a run folder, and check the contents of its files.

    An incomplete last line of ``metrics.csv``, which a killed process may leave, is ignored.

    Raises:
        ConfigurationError: ``metrics.csv`` is missing, has no rows or is not a table of rounds, or another file of the
            run is invalid.
    """
    folder = Path(folder)
    headline = headline_in(folder)
    text = _text_of_metrics(folder / "metrics.csv")
    metrics = _parse_metrics(text, folder / "metrics.csv", headline)
    if metrics.empty:
        raise ConfigurationError(f"Expected at least one round in {folder / 'metrics.csv'} but got only a header")
    levels = _read_table(folder / "levels.csv", LEVEL_RULES)
    if levels is not None:
        _check_names(levels["level"], folder / "levels.csv")
    scores = dict.fromkeys((headline.name, headline.own), SHARE if headline.percent else NUMBER)
    clients = _read_table(folder / "clients.csv", {**CLIENT_RULES, **scores})
    clusters = load_clusters(folder) if (folder / "clusters.csv").is_file() else None
    config = read_config(folder / "config.yaml")
    return Run(folder, metrics, config, levels, clients, clusters, headline, about_in(folder), _nan_rounds(text))


def read_metrics(path: Path, headline: Headline = ACCURACY) -> pd.DataFrame:
    """Return the complete rows of ``metrics.csv`` of a run; there may be none.

    Raises:
        ConfigurationError: the file is missing, or is not a table of rounds.
    """
    return _parse_metrics(_text_of_metrics(path), path, headline)


def _text_of_metrics(path: Path) -> str:
    """Return the complete lines of ``metrics.csv``."""
    if not path.is_file():
        raise ConfigurationError(f"Expected a run folder with a metrics.csv but got no file {str(path)!r}")
    return _text(path, LARGEST_TABLE).rpartition("\n")[0]


def _nan_rounds(text: str) -> dict[str, frozenset[int]]:
    """Return the rounds whose cell is ``nan`` by column, from the text of a valid ``metrics.csv``."""
    rounds: dict[str, set[int]] = {}
    for row in csv.DictReader(io.StringIO(text)) if "nan" in text else ():
        for name in (name for name, cell in row.items() if cell == "nan"):
            rounds.setdefault(present_name(name), set()).add(int(float(row["step"])))
    return {name: frozenset(each) for name, each in rounds.items()}


def _parse_metrics(text: str, path: Path, headline: Headline) -> pd.DataFrame:
    metrics = _parse(text, path, "a table of rounds")
    if "step" not in metrics.columns:
        raise ConfigurationError(f"Expected a column 'step' in {path} but got {_listed(metrics)}")
    metrics = metrics.rename(columns=present_name)
    for name in metrics.columns if len(metrics) else ():
        numbers = _numbers(metrics[name], _rule_of(name, headline), path)
        if not pd.api.types.is_numeric_dtype(metrics[name]):  # integers of more than 64 bits
            metrics[name] = numbers
        if name == "step" or TOTAL.fullmatch(name):
            _check_order(numbers, name, path)
    return metrics


def _rule_of(column: str, headline: Headline) -> Rule | None:
    shares = f"accuracy|{headline.name}" if headline.percent else "accuracy"
    rules = {SCORES.format(shares): SHARE, **METRIC_RULES}
    return next((rule for pattern, rule in rules.items() if re.fullmatch(pattern, column)), None)


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a ``config.yaml``; empty without such a file.

    Raises:
        ConfigurationError: the file is not YAML, or not the configuration of a run.
    """
    if not path.is_file():
        return {}
    text = _text(path, LARGEST_TEXT)
    try:
        config = parse_yaml(text)
    except TooMuch as error:
        raise error.inside(path) from error
    except ValueError as error:
        raise ConfigurationError(f"Expected YAML in {path} but got: {error}") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"Expected a mapping in {path} but got {type(config).__name__}")
    _check_settings(config, path)
    for key in MAPPINGS:
        if not isinstance(config.get(key), dict | None):
            raise ConfigurationError(f"Expected settings below {key} in {path} but got {config[key]!r:.60}")
    rounds, seed = (config.get("trainer") or {}).get("max_epochs"), config.get("seed_everything")
    for key, value in (("trainer.max_epochs", rounds), ("seed_everything", seed)):
        if not isinstance(value, int | None):
            raise ConfigurationError(f"Expected a whole number for {key} in {path} but got {value!r:.60}")
    return config


def _check_settings(settings: Any, path: Path) -> None:
    """Refuse ``init_args`` that are not a mapping, at any depth."""
    if isinstance(settings, dict) and "class_path" in settings:
        arguments = settings.get("init_args")
        if not isinstance(arguments, dict | None):
            raise ConfigurationError(
                f"Expected settings below init_args of {settings['class_path']} in {path} but got {arguments!r:.60}"
            )
    for inner in settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ():
        _check_settings(inner, path)


def _text(path: Path, largest: int) -> str:
    content = read_bytes(path, largest)
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {content[error.start]:#04x} at {error.start}"
        raise ConfigurationError(f"Expected text in {path} but got {byte}") from error
    if "\0" in text:
        raise ConfigurationError(f"Expected text in {path} but got byte 0x00 at {content.index(0)}")
    return text


def _parse(text: str, path: Path, expected: str) -> pd.DataFrame:
    try:
        names = next(csv.reader(io.StringIO(text)), [])
        table = pd.read_csv(
            io.StringIO(text),
            dtype={"level": str},
            keep_default_na=False,
            # The name of a level may be "nan".
            na_values={name: [""] if name == "level" else ["", "nan"] for name in names},
            skip_blank_lines=False,
        )
    except (pd.errors.EmptyDataError, pd.errors.ParserError, csv.Error) as error:
        raise ConfigurationError(f"Expected {expected} in {path} but got: {' '.join(str(error).split())}") from error
    if again := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise ConfigurationError(f"Expected every column once in {path} but got {again!r} twice")
    return table


def _listed(table: pd.DataFrame) -> str:
    return ", ".join(name if name.isprintable() else repr(name) for name in table.columns)


def _read_table(path: Path, rules: Mapping[str, Rule | None]) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    table = _parse(_text(path, LARGEST_TABLE), path, "a table")
    table = table.assign(**{name: value for name, value in ADDED.items() if name in rules and name not in table})
    for name in rules:
        if name not in table.columns:
            raise ConfigurationError(f"Expected a column {name!r} in {path} but got {_listed(table)}")
    if table.empty:
        raise ConfigurationError(f"Expected at least one row in {path} but got only a header")
    for name, rule in rules.items():
        if rule is not None:
            _numbers(table[name], rule, path)
    return table


def _numbers(column: pd.Series[Any], rule: Rule | None, path: Path) -> NDArray[np.float64]:
    """Return the numbers of a column; NaN for empty cells.

    Raises:
        ConfigurationError: a cell has text, or a number that breaks the rule; the message has the first such cell.
    """
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    numbers = np.asarray(pd.to_numeric(column if is_number else column.astype(str), errors="coerce"), dtype=np.float64)
    bad = column.notna().to_numpy() & np.isnan(numbers)
    if rule is not None:
        bad |= ~np.isnan(numbers) & ~rule[1](numbers)
    if bad.any():
        row = int(bad.argmax())
        cell = column.iloc[row]
        expected = "numbers" if rule is None else rule[0]
        _refuse(expected, column.name, path, row, f"{cell:.15g}" if is_number else f"{cell!r:.60}")
    return numbers


def _refuse(expected: str, name: object, path: Path, row: int, got: str) -> NoReturn:
    raise ConfigurationError(f"Expected {expected} in column {name!r} of {path} but got {got} in line {row + 2}")


def _check_order(numbers: NDArray[np.float64], name: str, path: Path) -> None:
    """Refuse a total that falls, and rounds that do not rise or are missing."""
    if name == "step" and np.isnan(numbers).any():
        _refuse("a round", name, path, int(np.isnan(numbers).argmax()), "none")
    rows = np.flatnonzero(~np.isnan(numbers))
    steps = np.diff(numbers[rows])
    bad = steps <= 0 if name == "step" else steps < 0
    if bad.any():
        place = int(bad.argmax())
        rule = "rounds that rise" if name == "step" else "a total that does not fall"
        before, after = numbers[rows[place : place + 2]]
        _refuse(rule, name, path, int(rows[place + 1]), f"{after:.15g} after {before:.15g}")


def _check_names(levels: pd.Series[str], path: Path) -> None:
    if levels.isna().any():
        _refuse("a name", "level", path, int(levels.isna().to_numpy().argmax()), "none")
    if levels.duplicated().any():
        row = int(levels.duplicated().to_numpy().argmax())
        _refuse("every level once", "level", path, row, f"{levels.iloc[row]!r:.60} again")
