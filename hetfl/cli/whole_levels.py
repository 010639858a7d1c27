"""Levels in configurations: a level given later replaces one of the same name as a whole.

jsonargparse keeps the fields of an earlier level that a later one does not give: ``b: {density: 0.2}`` after
``b: {width: 0.5}`` would be half as wide. So levels get all of their fields before they are merged. An option for one
field, such as ``--model.levels.b.width``, still changes this field alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml
from jsonargparse import get_loader

from hetfl.types import Level

OUTER = ("fit", "model", "init_args")
"""Keys below which ``levels`` may be."""
OPTION = re.compile(r"--model\.(?:init_args\.)?levels(?:=(.*))?", re.DOTALL)


def with_whole_levels(settings: Any) -> Any:
    """Return the settings of a configuration file, in which levels have all of their fields."""
    if not isinstance(settings, dict):
        return settings
    inner = {key: with_whole_levels(settings[key]) for key in OUTER if key in settings}
    if "levels" in settings:
        inner["levels"] = _whole(settings["levels"])
    return {**settings, **inner}


def options_with_whole_levels(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which levels that an option gives have all of their fields."""
    whole, is_value = [], False  # of the option before
    for argument in arguments:
        option = OPTION.fullmatch(argument)
        if is_value:
            argument = _whole_text(argument)
        elif option and option[1] is not None:
            argument = f"{argument[: option.start(1)]}{_whole_text(option[1])}"
        is_value = option is not None and option[1] is None
        whole.append(argument)
    return whole


def _whole_text(text: str) -> str:
    """Return levels as JSON; other text, such as the path of a file, is returned unchanged."""
    try:
        levels = get_loader("yaml")(text)
    except yaml.YAMLError:  # the parser refuses it
        return text
    whole = _whole(levels)
    return text if whole is levels else json.dumps(whole)


def _whole(levels: Any) -> Any:
    """Return levels with all of their fields; budgets and wrong values are returned unchanged."""
    if not isinstance(levels, dict) or not all(isinstance(level, dict) for level in levels.values()):
        return levels
    return {name: {**asdict(Level()), **level} for name, level in levels.items()}
