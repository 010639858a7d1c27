"""The card beside an exported file: a JSON description of its contents and origin."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hetfl.errors import ConfigurationError
from hetfl.reading import TooMuch, parse_json, read_bytes
from hetfl.types import Level

VERSION = 1
"""Version of the format of a card."""
LARGEST = 1_000_000
"""Maximum size of a card in bytes; usual cards have about a thousand bytes."""
MOST_ARGUMENTS = 10_000
"""Maximum length of the arguments of a constructor as JSON; it limits the size of a net that a card can build."""


@dataclass(frozen=True)
class Constructor:
    """The constructor call of a net.

    Attributes:
        path: the class path, as in YAML.
        arguments: all arguments including defaults; None if one of them is not a plain value.
    """

    path: str
    arguments: dict[str, Any] | None

    def __str__(self) -> str:
        given = self.arguments
        return f"{self.path}({'...' if given is None else ', '.join(f'{k}={v!r}' for k, v in given.items())})"


@dataclass(frozen=True)
class Card:
    """The description of an exported file.

    Attributes:
        file: name of the file when it was written; its suffix is the format.
        sha256: SHA-256 digest of the file, in hexadecimal digits.
        level: name and size of the level.
        method: class path of the federated module.
        rounds: number of rounds of training of the global model.
        net: constructor call of the net.
        parameters: number of parameters.
        dtype: type of the parameters and of input batches: ``float32`` or ``float64``.
        input: shape and dtype of a raw sample, and under ``normalisation`` class and arguments of the transform of raw
            batches (None if the arguments are not plain values).
        classes: number of classes K.
        score: the headline on the test set under its column, such as ``test/accuracy``, and the number of ``samples``;
            None: not measured, or not finite. In older cards its key is ``accuracy``.
        hetfl: version of hetfl that wrote the card.
    """

    file: str
    sha256: str
    level: Level
    method: str
    rounds: int
    net: Constructor
    parameters: int
    dtype: str
    input: dict[str, Any]
    classes: int
    score: dict[str, float] | None
    hetfl: str

    def to_json(self) -> str:
        """Return the card as JSON; equal cards give the same text."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["level"] = dataclasses.asdict(self.level)
        fields["net"] = {"class": self.net.path, "arguments": self.net.arguments}
        return json.dumps({"card": VERSION, **fields}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The floating-point type of the net."""
        return torch.float64 if self.dtype == "float64" else torch.float32


def card_path(path: Path) -> Path:
    """Return the path of the card of a file: ``c.safetensors.json`` for ``c.safetensors``."""
    return path.with_name(f"{path.name}.json")


def read_card(path: Path) -> Card:
    """Return a card from a file with the result of :meth:`Card.to_json`.

    Raises:
        ConfigurationError: the file is missing or is not such a card; the message has the file and the entry.
    """
    try:
        text = read_bytes(path, LARGEST)
    except OSError as error:
        raise ConfigurationError(f"Expected the card of an exported file in {path} but got: {error.strerror}") from None
    try:
        data = parse_json(text)
    except TooMuch as error:
        raise error.inside(path) from None
    except ValueError as error:
        raise ConfigurationError(f"Expected the card of an exported file in {path} but got no JSON: {error}") from None
    if not isinstance(data, dict) or "card" not in data:
        raise ConfigurationError(f"Expected the card of an exported file in {path} but got other content")
    if data["card"] != VERSION:
        raise ConfigurationError(f"Expected a card of version {VERSION} in {path} but got version {data['card']!r}")
    return _parse(data, path)


def _parse(data: Mapping[str, Any], path: Path) -> Card:
    def take(source: Mapping[str, Any], name: str, *kinds: type | None) -> Any:
        value = source.get(name)
        if not any(value is None if kind is None else type(value) is kind for kind in kinds):
            wanted = " or ".join("null" if kind is None else kind.__name__ for kind in kinds)
            raise ConfigurationError(f"Expected {name} ({wanted}) in the card {path} but got {value!r:.60}")
        return value

    level, net = take(data, "level", dict), take(data, "net", dict)
    arguments = take(net, "arguments", dict, None)
    if arguments is not None and len(json.dumps(arguments)) > MOST_ARGUMENTS:
        raise ConfigurationError(f"Expected at most {MOST_ARGUMENTS} characters of arguments in the card {path}")
    width = take(level, "width", float, int)
    if not 0 < width <= 1:
        raise ConfigurationError(f"Expected a width in (0, 1] in the card {path} but got {width!s:.60}")
    density = float(take(level, "density", float, int)) if "density" in level else 1.0
    rank = take(level, "rank", int, None) if "rank" in level else None
    dtype = take(data, "dtype", str)
    if dtype not in ("float32", "float64"):
        raise ConfigurationError(f"Expected dtype float32 or float64 in the card {path} but got {dtype!r:.60}")
    return Card(
        file=take(data, "file", str),
        sha256=take(data, "sha256", str),
        level=Level(take(level, "name", str), float(width), take(level, "depth", int, None), density, rank),
        method=take(data, "method", str),
        rounds=take(data, "rounds", int),
        net=Constructor(take(net, "class", str), arguments),
        parameters=take(data, "parameters", int),
        dtype=dtype,
        input=take(data, "input", dict),
        classes=take(data, "classes", int),
        score=take(data, "score" if "score" in data else "accuracy", dict, None),
        hetfl=take(data, "hetfl", str),
    )


def plain(value: Any) -> Any:
    """Return a value with the types of JSON; tuples become lists.

    Raises:
        TypeError: the value is not None, a bool, a finite number, a text, a list, or a mapping with text keys.

    >>> plain((1, 0.5, {"a": None}))
    [1, 0.5, {'a': None}]
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    raise TypeError(f"Expected a plain value but got {type(value).__name__}")
