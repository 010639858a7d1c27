"""The headline: the score by which models of a run are compared, with its name, direction and format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hetfl.errors import ConfigurationError
from hetfl.reading import parse_json, read_bytes
from hetfl.runs.metrics_file import score_column

FILE = "headline.json"
"""Name of the file with the headline in a run folder; the headline of a run without this file is the accuracy."""

LARGEST = 10_000
"""Maximum size of that file in bytes."""
LONGEST_TITLE = 60
"""Maximum number of characters of a title."""


@dataclass(frozen=True)
class Headline:
    """The score of an objective by which models are compared.

    Attributes:
        name: name in columns, such as ``accuracy`` in ``val/accuracy``: lower-case letters, digits and ``_``.
        higher_is_better: whether a higher score is better.
        percent: whether the score is a share from 0 to 1, which is shown as a percentage.
        title: name in tables, axes and sentences; empty: ``name`` with spaces instead of ``_``.

    Raises:
        ConfigurationError: the name is not valid for a column, or the title is too long or not printable.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    percent: bool = True
    title: str = ""

    def __post_init__(self) -> None:
        """Check the name and the title."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name == "loss":
            raise ConfigurationError(
                f"Expected the name of a headline of lower-case letters, digits and _, not loss, but got {self.name!r}"
            )
        if not self.title.isprintable() or len(self.title) > LONGEST_TITLE:
            raise ConfigurationError(
                f"Expected the title of a headline of at most {LONGEST_TITLE} printable characters "
                f"but got {self.title!r:.80}"
            )

    @property
    def words(self) -> str:
        """The title, or else the name with spaces."""
        return self.title or self.name.replace("_", " ")

    @property
    def heading(self) -> str:
        """The words with a capital first letter."""
        return self.words[:1].upper() + self.words[1:]

    @property
    def one(self) -> str:
        """The words with their indefinite article; a word in capitals is spoken letter by letter.

        >>> [Headline(title=title).one for title in ("accuracy", "perplexity", "MAE", "R²", "macro F1")]
        ['an accuracy', 'a perplexity', 'an MAE', 'an R²', 'a macro F1']
        """
        spelt = not self.words[1:2].islower()
        vowels = "aefhilmnorsx" if spelt else "aeiou"
        return f"{'an' if self.words[0].lower() in vowels else 'a'} {self.words}"

    @property
    def several(self) -> str:
        """The words in the plural.

        >>> [Headline(title=title).several for title in ("accuracy", "mean absolute error", "R²")]
        ['accuracies', 'mean absolute errors', 'values of R²']
        """
        if re.search(r"[^aeiou]y$", self.words):
            return f"{self.words[:-1]}ies"
        return f"{self.words}s" if self.words[-1].islower() else f"values of {self.words}"

    def in_unit(self, text: str) -> str:
        """Return the name of an axis, followed by ``(%)`` if scores are percentages."""
        return f"{text} (%)" if self.percent else text

    @property
    def scale(self) -> float:
        """The factor by which a score is multiplied for display."""
        return 100.0 if self.percent else 1.0

    def column(self, stage: str, part: str = "") -> str:
        """Return the column of the score of a level or a head; see :func:`hetfl.runs.metrics_file.score_column`."""
        return score_column(stage, part, self.name)

    def local(self, figure: str) -> str:
        """Return the column of a statistic over clients.

        Args:
            figure: ``mean``, ``by_samples``, ``worst10``, ``std`` or ``var``.

        >>> Headline().local("worst10")
        'local/accuracy_worst10'
        """
        return f"local/{self.name}_{figure}"

    @property
    def personal(self) -> str:
        """The column of the mean over clients of the scores of sub-models with the client's personal tensors."""
        return f"local/personal_{self.name}"

    def cluster(self, number: int) -> str:
        """Return the column of the score of the model of a cluster."""
        return f"cluster/{self.name}/{number}"

    @property
    def own(self) -> str:
        """The column of ``clients.csv`` with the scores of sub-models; :attr:`name` has those of the global model."""
        return f"own_{self.name}"

    def number(self, value: float, digits: int = 2) -> str:
        """Return a score as text without its unit.

        Args:
            value: the score.
            digits: decimals of a percentage; another number has two more significant digits.

        >>> Headline().number(0.97531), [Headline("mae", False, False).number(x) for x in (12.3, 1234.0, 54321.0)]
        ('97.53', ['12.30', '1234', '54321'])
        """
        if self.percent:
            return f"{100 * value:.{digits}f}"
        if 10 ** (digits + 2) <= abs(value) < 1e7:
            return f"{value:.0f}"
        return f"{value:#.{digits + 2}g}".rstrip(".")

    def shown(self, value: float, digits: int = 2) -> str:
        """Return a score as text with its unit; see :meth:`number`.

        >>> Headline().shown(0.97531), Headline("mae", False, False).shown(12.3456)
        ('97.53 %', '12.35')
        """
        if math.isnan(value):
            return "nan"
        return f"{self.number(value, digits)} %" if self.percent else self.number(value, digits)

    def difference(self, value: float) -> str:
        """Return a difference of two scores as text.

        >>> Headline().difference(0.05), Headline("mae", False, False).difference(1.5)
        ('5.00 points', '1.500')
        """
        return f"{self.number(value)} points" if self.percent else self.number(value)

    def better(self, one: float, other: float) -> bool:
        """Return whether a score is better than another score; NaN is never better."""
        return one > other if self.higher_is_better else one < other

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some scores without NaN; NaN if there are none."""
        known = [value for value in values if not math.isnan(value)]
        return (max if self.higher_is_better else min)(known, default=math.nan)

    def to_json(self) -> bytes:
        """Return the contents of the file of the headline."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"


ACCURACY = Headline()
"""The headline of classification, and of runs of the first edition."""


def common_headline(headlines: Mapping[str, Headline]) -> Headline:
    """Return the common headline of all runs.

    Args:
        headlines: at least one headline, by the name of the run for messages.

    Raises:
        ConfigurationError: two headlines differ; the message has both.

    >>> common_headline({"one": ACCURACY, "two": Headline("mae", False, False)})
    Traceback (most recent call last):
    hetfl.errors.ConfigurationError: Expected runs with the same score but got accuracy in one and mae in two
    """
    (first, headline), *others = headlines.items()
    for name, other in others:
        if (other.name, other.higher_is_better, other.percent) != (
            headline.name,
            headline.higher_is_better,
            headline.percent,
        ):
            raise ConfigurationError(
                f"Expected runs with the same score but got {headline.name} in {first} and {other.name} in {name}"
            )
    return headline


def headline_in(folder: Path) -> Headline:
    """Return the headline of the run in a folder; the accuracy if the folder has no file of a headline.

    Raises:
        ConfigurationError: the file is invalid.
    """
    path = folder / FILE
    if not path.is_file():
        return ACCURACY
    try:
        headline = Headline(**parse_json(read_bytes(path, LARGEST), LARGEST))
        if [type(value) for value in asdict(headline).values()] != [str, bool, bool, str]:
            raise TypeError("other types")
    except (AttributeError, TypeError, ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"Expected the headline of a run in {path} but got: {error}") from None
    return headline
