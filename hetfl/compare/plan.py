"""The plan of a comparison: its runs, their progress, and the next action for each run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from hetfl.analysis.runs import read_config, read_metrics
from hetfl.cli.config_files import config_file
from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, parse_yaml, read_bytes
from hetfl.report.groups import ABSENT, SEED_OR_FOLDER
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.flat_settings import flat_settings
from hetfl.runs.headline import headline_in
from hetfl.session.callbacks import has_ended

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
ROUNDS = "trainer.max_epochs"


@dataclass(frozen=True)
class Contender:
    """A configuration to compare, with a name.

    Attributes:
        name: its name, and the name of the folder of its runs.
        files: YAML files or names of packaged configurations; later ones override earlier ones.
        swept: keys and values of a grid, which override the files.
    """

    name: str
    files: tuple[str, ...]
    swept: tuple[tuple[str, str], ...] = ()


def parse_contenders(given: Sequence[str]) -> list[Contender]:
    """Return the contenders of arguments of the form ``NAME=FILE[,FILE...]``.

    Raises:
        ConfigurationError: there is no argument, an argument has another form, a name occurs twice, or a file is
            missing.

    >>> parse_contenders(["width=pyproject.toml"])[0].files
    ('pyproject.toml',)
    """
    if not given:
        raise ConfigurationError("Expected at least one -r NAME=FILE to compare but got none")
    contenders = []
    for text in given:
        name, equals, files = text.partition("=")
        if not equals or not files:
            raise ConfigurationError(f"Expected -r NAME=FILE[,FILE...] but got {text!r}")
        if not NAME.fullmatch(name):
            raise ConfigurationError(f"Expected a name of letters, digits, '-' and '_' in -r but got {name!r}")
        for file in files.split(","):
            try:
                config_file(file)
            except ConfigurationError as error:
                raise ConfigurationError(f"run {name}: {error}") from error
        contenders.append(Contender(name, tuple(files.split(","))))
    if again := _twice([each.name for each in contenders]):
        raise ConfigurationError(f"Expected every name once in -r but got {again} twice: give files as NAME=FILE,FILE")
    return contenders


def parse_seeds(given: Sequence[str]) -> list[int]:
    """Return seeds as integers.

    Raises:
        ConfigurationError: a seed is not a whole number from 0 to 2³² − 1, or occurs twice.

    >>> parse_seeds(["0", "17"])
    [0, 17]
    """
    for text in given:
        if not (text.isascii() and text.isdecimal() and int(text) < 2**32):
            raise ConfigurationError(f"Expected a whole number from 0 to {2**32 - 1} in --seeds but got {text!r}")
    seeds = [int(text) for text in given]
    if (again := _twice(seeds)) is not None:
        raise ConfigurationError(f"Expected every seed once in --seeds but got {again} twice")
    return seeds


def _twice(given: Sequence[T]) -> T | None:
    return next((each for each, count in Counter(given).items() if count > 1), None)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Attributes:
        name: name of its configuration.
        seed: its seed.
        folder: its run folder.
        text: its complete configuration, as YAML.
    """

    name: str
    seed: int
    folder: Path
    text: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration."""
        settings: dict[str, Any] = parse_yaml(self.text)
        return settings

    @property
    def rounds(self) -> int:
        """Total number of rounds."""
        return int(self.settings["trainer"]["max_epochs"])

    @property
    def title(self) -> str:
        """Title of the run in output."""
        return f"{self.name} seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Path of its last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def log(self) -> Path:
        """Path of the file with the output of the run."""
        return self.folder.with_suffix(".log")

    @property
    def mark(self) -> Path:
        """Path of the mark of a finished run; the file has the number of rounds in its configuration."""
        return self.folder.with_suffix(".ended")


@dataclass(frozen=True)
class Standing:
    """The progress of a run, from its ``metrics.csv``.

    Attributes:
        done: number of rounds that have a row.
        val_score: the latest validation headline; None: none yet.
        test_score: the test headline of the last row; None: not tested.
        up_bytes: bytes uploaded up to the last row; None: unknown.
        down_bytes: bytes downloaded up to the last row; None: unknown.
        up_ratio: bytes of updates as dense float32 up to the last row, divided by ``up_bytes``; None: unknown.
    """

    done: int = 0
    val_score: float | None = None
    test_score: float | None = None
    up_bytes: float | None = None
    down_bytes: float | None = None
    up_ratio: float | None = None

    @property
    def score(self) -> float | None:
        """The test headline, or else the latest validation headline; None: none yet."""
        return self.val_score if self.test_score is None else self.test_score

    @property
    def stage(self) -> str:
        """The evaluation that :attr:`score` is from, in words."""
        return "validation" if self.test_score is None else "test"


def standing(folder: Path) -> Standing:
    """Return the progress of a run, which may be executing: an incomplete last line is ignored.

    Raises:
        ConfigurationError: its ``metrics.csv`` is not a table of rounds, or its headline is invalid.
    """
    path = folder / "metrics.csv"
    if not path.is_file() or b"\n" not in read_bytes(path, LARGEST_TABLE):
        return Standing()
    headline = headline_in(folder)
    metrics = read_metrics(path, headline)
    if metrics.empty:
        return Standing()
    return Standing(
        done=int(metrics["step"].iloc[-1]) + 1,
        val_score=_last(metrics, headline.column("val")),
        test_score=_last(metrics.iloc[-1:], headline.column("test")),
        up_bytes=_last(metrics.iloc[-1:], "comm/up_bytes_total"),
        down_bytes=_last(metrics.iloc[-1:], "comm/down_bytes_total"),
        up_ratio=_last(metrics.iloc[-1:], "comm/up_ratio_total"),
    )


def _last(metrics: pd.DataFrame, column: str) -> float | None:
    known = metrics.get(column, pd.Series(dtype="float64")).dropna()
    return float(known.iloc[-1]) if len(known) else None


class Action(Enum):
    """The next action for a run, in the words of the plan."""

    SKIP = "nothing: it is finished"
    BEGIN = "start"
    ANEW = "start again: it was stopped before its first checkpoint"
    RESUME = "resume"
    TEST = "test: all rounds are done"


def next_action(run: PlannedRun) -> Action:
    """Return the next action for a run.

    Raises:
        ConfigurationError: its folder has checkpoints but not the last one, or lacks the rounds before the checkpoint.
    """
    at = standing(run.folder)
    if run.mark.is_file() and run.mark.read_bytes() == str(run.rounds).encode() and at.done:
        return Action.SKIP  # its settings may have ended it before its last round
    tests = run.settings["final_test"]
    complete = at.done >= run.rounds and (at.test_score is not None or not tests)
    if not run.checkpoint.is_file():
        if next(run.folder.rglob("*.ckpt"), None) is not None:
            raise ConfigurationError(f"Expected {run.checkpoint}, to resume from, but got only other checkpoints")
        if complete:  # its settings switch checkpoints off
            return Action.SKIP
        return Action.ANEW if run.folder.is_dir() and any(run.folder.iterdir()) else Action.BEGIN
    if not at.done:  # a row is written before its checkpoint, so a row was deleted
        raise ConfigurationError(
            f"Expected the rounds before {run.checkpoint} in {run.folder / 'metrics.csv'} but got none: "
            f"delete {run.folder} to start the run again"
        )
    if complete and tests:
        return Action.SKIP
    # A row is written before its checkpoint, so all rows may exist without the checkpoint of the last round. A run that
    # its settings ended early has fewer rows.
    checkpoint = SafeCheckpointIO().load_checkpoint(run.checkpoint)
    if not has_ended(checkpoint, run.rounds) or at.done > checkpoint["hetfl"]["version"]:
        return Action.RESUME
    return Action.TEST if tests and at.test_score is None else Action.SKIP


def differences(made: Mapping[str, Any], planned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the settings that differ, as key, old value and new value; seeds, folders and more rounds do not count.

    >>> differences({"a": 1, "trainer": {"max_epochs": 2}}, {"a": None, "trainer": {"max_epochs": 3}})
    [('a', '1', 'null')]
    """
    was, now = flat_settings(made), flat_settings(planned)
    changed = []
    for key in dict.fromkeys([*was, *now]):
        one, other = was.get(key, ABSENT), now.get(key, ABSENT)
        longer = key == ROUNDS and one.isdecimal() and other.isdecimal() and int(one) < int(other)
        if one != other and not longer and not SEED_OR_FOLDER.fullmatch(key):
            changed.append((key, one, other))
    return changed


def check_validated(run: PlannedRun) -> None:
    """Refuse a run without any validation.

    Raises:
        ConfigurationError: validation is switched off, or its interval is longer than the run.
    """
    trainer = run.settings["trainer"]
    if trainer.get("limit_val_batches") == 0:
        raise ConfigurationError(
            f"run {run.name}: Expected trainer.limit_val_batches above 0 but got 0: runs are compared by validation"
        )
    interval = trainer.get("val_check_interval")  # in batches, i.e. rounds, if check_val_every_n_epoch is null
    if trainer.get("check_val_every_n_epoch", 1) is None and isinstance(interval, int) and interval > run.rounds:
        raise ConfigurationError(
            f"run {run.name}: Expected trainer.val_check_interval of at most {run.rounds} rounds but got {interval}"
        )


def check_unchanged(run: PlannedRun) -> None:
    """Refuse to mix runs of one name with different settings in one folder; more rounds are allowed.

    Raises:
        ConfigurationError: an earlier run of this name has other settings; the message has the first difference.
    """
    for saved in sorted(run.folder.parent.glob("seed_*/config.yaml")):
        changed = differences(read_config(saved), run.settings)
        if changed:
            key, was, now = changed[0]
            least = "of at least " if key == ROUNDS else ""
            more = f" (and {len(changed) - 1} more that differ)" if len(changed) > 1 else ""
            raise ConfigurationError(
                f"Expected {key} {least}{was}, as in {saved.parent}, but got {now} for run {run.name}{more}: use "
                "another --out, or the earlier settings"
            )
