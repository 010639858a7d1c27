"""Absolute paths in a saved configuration, so that a run can be resumed from any directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

PATH_NAME = re.compile(r"(.*_)?(path|root|folder|file|dir|directory)")
"""Names of arguments that are paths, in any class."""


def make_absolute(part: Any, name: str = "") -> Any:
    """Return settings in which relative paths are made absolute, starting from the current directory.

    A text is a path if the name of its argument is ``path``, ``root``, ``folder``, ``file``, ``dir`` or ``directory``,
    or ends in an underscore and one of these.

    Args:
        part: settings, or a value; Namespaces and mappings are changed in place.
        name: name of the argument with the value.
    """
    if isinstance(part, Namespace | dict):
        for key, value in list(part.items() if isinstance(part, dict) else vars(part).items()):
            part[key] = make_absolute(value, str(key))
        return part
    if isinstance(part, list):
        return [make_absolute(item, name) for item in part]
    if isinstance(part, str) and part and "://" not in part and PATH_NAME.fullmatch(name) and name != "class_path":
        return str(Path(part).absolute())
    return part
