"""Paths in a saved configuration: absolute, so that a run can be resumed from any directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

PATH_NAME = re.compile(r"(.*_)?(path|root|folder|file|dir|directory)")
"""Names of arguments that are paths, whatever class they belong to."""


def make_absolute(part: Any, name: str = "") -> Any:
    """Return settings with all relative paths among them made absolute, from the present directory.

    A text is a path if its argument is called ``path``, ``root``, ``folder``, ``file``, ``dir`` or ``directory``, or
    ends in one of these behind an underscore.

    Args:
        part: settings, or a value; Namespaces and mappings are changed in place.
        name: of the argument that has the value.
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
