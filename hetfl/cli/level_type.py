"""Levels in configurations: a level given later replaces one of the same name as a whole.

jsonargparse would keep the fields of the earlier level that the later one does not give: ``b: {density: 0.2}`` after
``b: {width: 0.5}`` would be half as wide.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hetfl.types import Level

NUMBER, COUNT = "a number", "an integer or null"
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "text"),
    "width": ((int, float), NUMBER),
    "depth": ((int, type(None)), COUNT),
    "density": ((int, float), NUMBER),
    "rank": ((int, type(None)), COUNT),
}
"""By field of a level the types of its values, and these in words."""


def read_level(value: Any) -> Level:
    """Return the level of a mapping.

    Raises:
        ValueError: it is no mapping, or a value has another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f"Expected a mapping such as {{width: 0.5}} for a level but got {value!r:.80}")
    sizes: dict[str, Any] = {}
    for name, given in value.items():
        types, words = KINDS.get(name, ((object,), ""))  # the class refuses a misspelt name with a suggestion
        if not isinstance(given, types) or isinstance(given, bool):
            raise ValueError(f"Expected {words} as {name} of a level but got {given!r:.80}")
        sizes[name] = float(value[name]) if words == NUMBER else given
    return Level(**sizes)


def written_level(level: Level) -> dict[str, Any]:
    """Return the mapping of a level: its width, and the other values that are not the defaults."""
    values = {each.name: (getattr(level, each.name), each.default) for each in fields(level)}
    return {name: value for name, (value, default) in values.items() if name == "width" or value != default}
