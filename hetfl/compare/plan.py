"""The plan of a comparison: its runs, where each of them stands, and what is left to do with it."""

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
from hetfl.cli.callbacks import has_ended
from hetfl.cli.config_files import config_file
from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_TABLE, parse_yaml, read_bytes
from hetfl.report.groups import ABSENT, SEED_OR_FOLDER, flat_settings
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.headline import headline_in

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
ROUNDS = "trainer.max_epochs"


@dataclass(frozen=True)
class Contender:
    """What is compared: one configuration, under a name.

    Attributes:
        name: its name, and that of its runs' folder.
        files: YAML files or names of packaged configurations, later ones on top.
    """

    name: str
    files: tuple[str, ...]


def parse_contenders(given: Sequence[str]) -> list[Contender]:
    """Return what ``NAME=FILE[,FILE...]`` say.

    Raises:
        ConfigurationError: there is none, one has another form, a name comes twice, or a file is not there.

    >>> parse_contenders(["width=pyproject.toml"])
    [Contender(name='width', files=('pyproject.toml',))]
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
        raise ConfigurationError(f"Expected every name once in -r but got {again} twice: files stack as NAME=FILE,FILE")
    return contenders


def parse_seeds(given: Sequence[str]) -> list[int]:
    """Return seeds.

    Raises:
        ConfigurationError: one is no whole number from 0 to 2³² − 1, or comes twice.

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
        name: of its configuration.
        seed: its seed.
        folder: its run folder.
        text: its whole configuration, as YAML.
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
        """How many rounds it has."""
        return int(self.settings["trainer"]["max_epochs"])

    @property
    def title(self) -> str:
        """What it is called where people read of it."""
        return f"{self.name} seed {self.seed}"

    @property
    def checkpoint(self) -> Path:
        """Where its last checkpoint is."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def log(self) -> Path:
        """The file that takes what the run says."""
        return self.folder.with_suffix(".log")

    @property
    def mark(self) -> Path:
        """The file that says that the run ended by itself: it holds how many rounds were asked for."""
        return self.folder.with_suffix(".ended")


@dataclass(frozen=True)
class Standing:
    """How far a run is, by its ``metrics.csv``.

    Attributes:
        done: rounds that have a row.
        val_score: the latest headline; None: none yet.
        test_score: that of the last row; None: not tested.
        up_bytes: uploaded so far; None: not known.
    """

    done: int = 0
    val_score: float | None = None
    test_score: float | None = None
    up_bytes: float | None = None

    @property
    def score(self) -> float | None:
        """The test's headline, else the latest validation's; None: none yet."""
        return self.val_score if self.test_score is None else self.test_score


def standing(folder: Path) -> Standing:
    """Return how far a run is, which may be under way: a last line without its end is no row yet.

    Raises:
        ConfigurationError: its ``metrics.csv`` is no table of rounds, or its headline is none.
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
    )


def _last(metrics: pd.DataFrame, column: str) -> float | None:
    known = metrics.get(column, pd.Series(dtype="float64")).dropna()
    return float(known.iloc[-1]) if len(known) else None


class Action(Enum):
    """What is left to do with a run, in the words of the plan."""

    SKIP = "nothing: it is finished"
    BEGIN = "begin"
    ANEW = "begin anew: it was stopped before its first checkpoint"
    RESUME = "go on"
    TEST = "test: all rounds are done"


def next_action(run: PlannedRun) -> Action:
    """Return what is left to do with a run.

    Raises:
        ConfigurationError: its folder holds checkpoints, but none to go on from, or not the rounds before it.
    """
    at = standing(run.folder)
    if run.mark.is_file() and run.mark.read_bytes() == str(run.rounds).encode() and at.done:
        return Action.SKIP  # perhaps before its last round: it may stop early by its settings
    tests = run.settings["final_test"]
    complete = at.done >= run.rounds and (at.test_score is not None or not tests)
    if not run.checkpoint.is_file():
        if next(run.folder.rglob("*.ckpt"), None) is not None:
            raise ConfigurationError(f"Expected {run.checkpoint}, to go on from, but got other checkpoints only")
        if complete:  # checkpoints are switched off by its settings
            return Action.SKIP
        return Action.ANEW if run.folder.is_dir() and any(run.folder.iterdir()) else Action.BEGIN
    if not at.done:  # a row is written before its checkpoint, so there was one
        raise ConfigurationError(
            f"Expected the rounds before {run.checkpoint} in {run.folder / 'metrics.csv'} but got none: "
            f"delete {run.folder}, and the run begins anew"
        )
    if complete and tests:
        return Action.SKIP
    # A row is written before its checkpoint: all rows may be there, and the last round's checkpoint not. A run that
    # its settings stop early has fewer rows.
    checkpoint = SafeCheckpointIO().load_checkpoint(run.checkpoint)
    if not has_ended(checkpoint, run.rounds) or at.done > checkpoint["hetfl"]["version"]:
        return Action.RESUME
    return Action.TEST if tests and at.test_score is None else Action.SKIP


def differences(made: Mapping[str, Any], planned: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the settings that differ: key, what it was, what it is now; but not seeds, folders and more rounds.

    >>> differences({"a": 1, "trainer": {"max_epochs": 2}}, {"a": None, "trainer": {"max_epochs": 3}})
    [('a', '1', 'null')]
    """
    was, now = flat_settings(made), flat_settings(planned)
    found = []
    for key in dict.fromkeys([*was, *now]):
        one, other = was.get(key, ABSENT), now.get(key, ABSENT)
        longer = key == ROUNDS and one.isdecimal() and other.isdecimal() and int(one) < int(other)
        if one != other and not longer and not SEED_OR_FOLDER.fullmatch(key):
            found.append((key, one, other))
    return found


def check_validated(run: PlannedRun) -> None:
    """Refuse a run that no round would validate.

    Raises:
        ConfigurationError: its settings switch validation off, or put it off beyond the last round.
    """
    trainer = run.settings["trainer"]
    if trainer.get("limit_val_batches") == 0:
        raise ConfigurationError(
            f"run {run.name}: Expected trainer.limit_val_batches above 0 but got 0: runs are compared by validation"
        )
    interval = trainer.get("val_check_interval")  # in rounds, where epochs are not asked about: a round is a batch
    if trainer.get("check_val_every_n_epoch", 1) is None and isinstance(interval, int) and interval > run.rounds:
        raise ConfigurationError(
            f"run {run.name}: Expected trainer.val_check_interval of at most {run.rounds} rounds but got {interval}"
        )


def check_unchanged(run: PlannedRun) -> None:
    """Refuse to mix runs of one name with different settings in one folder; more rounds are none.

    Raises:
        ConfigurationError: a run of this name, with whatever seed, was made with other settings; names the first.
    """
    for saved in sorted(run.folder.parent.glob("seed_*/config.yaml")):
        changed = differences(read_config(saved), run.settings)
        if changed:
            key, was, now = changed[0]
            least = "of at least " if key == ROUNDS else ""
            more = f" (and {len(changed) - 1} more that differ)" if len(changed) > 1 else ""
            raise ConfigurationError(
                f"Expected {key} {least}{was}, which {saved.parent} was made with, but got {now} for run "
                f"{run.name}{more}: take another --out, or the settings as they were"
            )
