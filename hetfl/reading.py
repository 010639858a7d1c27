"""Reads text of files and command lines within bounds on its size, its depth, and its expansion by YAML aliases.

A configuration, a card or a table may be from an untrusted source. A few lines of YAML can expand to a billion values,
and a few thousand brackets nest deeper than Python's stack. All code that reads YAML, JSON or CSV uses this module.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hetfl.errors import ConfigurationError

LARGEST_TEXT = 2_000_000
"""Bound on the characters of a YAML text and on the bytes of its file. A run's configuration has about ten thousand."""
LARGEST_HEADER = 100_000_000
"""Bound on the bytes of a JSON text that lists a net's tensors or operators; safetensors has the same for a header."""
LARGEST_TABLE = 2**30
"""Bound on the bytes of a table that a run writes: a million rounds of a hundred columns."""
LARGEST_DATA = 2**36
"""Bound on the bytes of a table of a user's data."""
DEEPEST = 100
"""Bound on the depth of lists and mappings inside each other."""
SHALLOW = f"at most {DEEPEST} lists and mappings inside each other"
MOST_VALUES = 100_000
"""Bound on the values of a YAML text; values that aliases repeat count each time."""

LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""A loader that only makes plain values. Not every installation has the one in C, which is twenty times faster."""
_MARKUP = "[{&"
"""Characters that begin flow lists, flow mappings and anchors. A string without any of them is not measured."""


class TooMuch(ValueError):
    """A text beyond the bounds of this module.

    Args:
        expected: text of the bound.
        came: text of what the input has.
    """

    def __init__(self, expected: str, came: str = "more") -> None:
        super().__init__(f"Expected {expected} but got {came}")
        self.expected, self.came = expected, came

    def inside(self, path: Path) -> ConfigurationError:
        """Return the error that names the file."""
        return ConfigurationError(f"Expected {self.expected} in {path} but got {self.came}")


@dataclass
class _Part:
    """A list or mapping whose end has not been read yet.

    Attributes:
        anchor: its anchor; None: it has none.
        before: number of values before it.
        height: depth of the lists and mappings inside it, so far.
    """

    anchor: str | None
    before: int
    height: int = 0


class _Meter:
    """Counts the values of a YAML text event by event, without recursion and without constructing them.

    Args:
        inner: whether to measure string values as YAML too, because the parser reads a string as YAML again where a
            number is expected.
    """

    def __init__(self, inner: bool = True) -> None:
        self.inner, self.count = inner, 0
        self._open: list[_Part] = [_Part(None, 0)]
        self._anchored: dict[str, tuple[int, int]] = {}

    def add(self, event: yaml.Event) -> None:
        """Count the next event.

        Raises:
            TooMuch: the text so far is beyond a bound.
        """
        if isinstance(event, yaml.AliasEvent):
            self._repeat(event.anchor)
        elif isinstance(event, yaml.ScalarEvent):
            self._end(_Part(event.anchor, self.count, -1))
            if self.inner and any(mark in event.value for mark in _MARKUP):
                with suppress(yaml.YAMLError):  # the string is no YAML
                    _measure(event.value, _Meter(inner=False))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._open.append(_Part(event.anchor, self.count))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._end(self._open.pop())
        if self.count > MOST_VALUES:
            raise TooMuch(f"at most {MOST_VALUES:,} values, aliases written out,")
        if len(self._open) + self._open[-1].height - 1 > DEEPEST:
            raise TooMuch(SHALLOW)

    def _end(self, part: _Part) -> None:
        self.count += 1
        if part.anchor is not None:
            self._anchored[part.anchor] = (self.count - part.before, part.height + 1)
        self._open[-1].height = max(self._open[-1].height, part.height + 1)

    def _repeat(self, anchor: str | None) -> None:
        assert anchor is not None  # an alias always has one
        if any(part.anchor == anchor for part in self._open):
            raise TooMuch("settings with an end", f"some that lie in themselves: *{anchor:.60}")
        count, height = self._anchored.get(anchor, (1, 0))  # the loader refuses an unknown anchor
        self.count += count
        self._open[-1].height = max(self._open[-1].height, height)


def check_yaml(text: str) -> None:
    """Refuse a YAML text that is too large, nests too deeply or grows too large by aliases.

    Raises:
        TooMuch: the text is beyond a bound; names the bound.
        yaml.YAMLError: the text is no YAML.
    """
    if len(text) > LARGEST_TEXT:
        raise TooMuch(f"at most {LARGEST_TEXT:,} characters of YAML", f"{len(text):,}")
    _measure(text, _Meter())


def _measure(text: str, meter: _Meter) -> None:
    for event in yaml.parse(text, Loader=LOADER):
        meter.add(event)


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises:
        ValueError: the text is no YAML of plain values, or beyond a bound; the message is one line.
    """
    try:
        check_yaml(text)
        loader = LOADER(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except TooMuch:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date
        raise ValueError(" ".join(str(error).split())) from error


def parse_json(text: str | bytes, largest: int = LARGEST_HEADER) -> Any:
    """Return the values of a JSON text.

    Args:
        text: the text; bytes are UTF-8.
        largest: largest number of characters, or bytes.

    Raises:
        ValueError: the text is no JSON, or beyond a bound; the message is one line.
    """
    if len(text) > largest:
        raise TooMuch(f"at most {largest:,} bytes of JSON", f"{len(text):,}")
    try:
        values = json.loads(text)
    except RecursionError:
        raise TooMuch(SHALLOW) from None
    layer = [values]
    for _ in range(DEEPEST):
        layer = [item for part in layer for item in _items(part) if isinstance(item, dict | list)]
        if not layer:
            return values
    raise TooMuch(SHALLOW)


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """Return the bytes of a file.

    Raises:
        ConfigurationError: the file has more than ``largest`` bytes.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise TooMuch(f"at most {largest:,} bytes").inside(path)
    return data


def check_size(path: Path, largest: int) -> None:
    """Refuse a file of too many bytes before other code reads it; a path without a file is accepted.

    Raises:
        ConfigurationError: the file has more than ``largest`` bytes.
    """
    if path.is_file() and (size := path.stat().st_size) > largest:
        raise TooMuch(f"at most {largest:,} bytes", f"{size:,}").inside(path)
