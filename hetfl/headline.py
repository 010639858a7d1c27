"""The score by which models of a run are compared: its name, its direction, and how it is written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.metrics_file import score_column
from hetfl.reading import parse_json, read_bytes

FILE = "headline.json"
"""Name of the file of a run folder that says what the run's headline is; a run without it has an accuracy."""

LARGEST = 10_000
"""Bytes of that file."""


@dataclass(frozen=True)
class Headline:
    """The score of an objective by which models are compared.

    Attributes:
        name: as columns have it, such as ``accuracy`` in ``val/accuracy``: lower-case letters, digits and ``_``.
        higher_is_better: whether a model of a higher score is the better one.
        percent: whether the score is a share from 0 to 1, which is shown as a percentage.
        title: as tables and axes have it; empty: the name, with spaces for ``_``.

    Raises:
        ConfigurationError: the name cannot be that of a column.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    percent: bool = True
    title: str = ""

    def __post_init__(self) -> None:
        """Check the name."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name == "loss":
            raise ConfigurationError(
                f"Expected the name of a headline of lower-case letters, digits and _, not loss, but got {self.name!r}"
            )

    @property
    def words(self) -> str:
        """The title; else the name in words."""
        return self.title or self.name.replace("_", " ")

    @property
    def unit(self) -> str:
        """What stands behind a number on an axis or in a table: ``%`` or nothing."""
        return "%" if self.percent else ""

    @property
    def scale(self) -> float:
        """What a score is multiplied by where it is shown."""
        return 100.0 if self.percent else 1.0

    def column(self, stage: str, part: str = "") -> str:
        """Return the column of a level's or a head's score; see :func:`hetfl.metrics_file.score_column`."""
        return score_column(stage, part, self.name)

    def local(self, figure: str) -> str:
        """Return the column of a figure over clients.

        Args:
            figure: ``mean``, ``by_samples``, ``worst10``, ``std`` or ``var``.

        >>> Headline().local("worst10")
        'local/accuracy_worst10'
        """
        return f"local/{self.name}_{figure}"

    def shown(self, value: float, digits: int = 2) -> str:
        """Return a score as text: a percentage, or a number of about as many significant digits.

        >>> Headline().shown(0.97531), Headline("mae", False, False).shown(12.3456)
        ('97.53 %', '12.35')
        """
        if math.isnan(value):
            return "nan"
        return f"{100 * value:.{digits}f} %" if self.percent else f"{value:.{digits + 2}g}"

    def better(self, one: float, other: float) -> bool:
        """Return whether one score is better than another one; NaN never is."""
        return one > other if self.higher_is_better else one < other

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some scores, those of NaN left out; NaN without any."""
        known = [value for value in values if not math.isnan(value)]
        return (max if self.higher_is_better else min)(known, default=math.nan)

    def save(self, folder: Path) -> None:
        """Write the headline into a run's folder.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(folder / FILE, self.to_json())

    def to_json(self) -> bytes:
        """Return the headline as the content of its file."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


ACCURACY = Headline()
"""The headline of classification, and of runs of the first edition."""


def headline_in(folder: Path) -> Headline:
    """Return the headline of the run in a folder; the accuracy if the folder says nothing.

    Raises:
        ConfigurationError: the file is none that a run writes.
    """
    path = folder / FILE
    if not path.is_file():
        return ACCURACY
    try:
        said = parse_json(read_bytes(path, LARGEST), LARGEST)
        headline = Headline(**said)
        if [type(value) for value in asdict(headline).values()] != [str, bool, bool, str]:
            raise TypeError("other types")
    except (TypeError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"Expected the headline of a run in {path} but got: {error}") from None
    return headline
