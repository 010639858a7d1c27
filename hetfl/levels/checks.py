"""Checks of the sizes of levels, before nets are built."""

from __future__ import annotations

import re

from hetfl.errors import ConfigurationError
from hetfl.types import Level


def check_level(level: Level) -> None:
    """Refuse a level whose name or sizes are out of range.

    Raises:
        ConfigurationError: a name, width, depth, density or rank is out of range.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", level.name) or level.name.startswith("head_"):
        raise ConfigurationError(
            f"Expected level names of letters, digits, - and _, none of them head_..., but got {level.name!r}"
        )
    if not 0.0 < level.width <= 1.0:
        raise ConfigurationError(f"Expected width in (0, 1] for level {level.name} but got {level.width}")
    if not 0.0 < level.density <= 1.0:
        raise ConfigurationError(f"Expected density in (0, 1] for level {level.name} but got {level.density}")
    if level.depth is not None and level.depth < 1:
        raise ConfigurationError(f"Expected depth of at least 1 for level {level.name} but got {level.depth}")
    if level.rank is not None and level.rank < 1:
        raise ConfigurationError(f"Expected rank of at least 1 for level {level.name} but got {level.rank}")


def check_first(level: Level) -> None:
    """Refuse a first level that is not the global model.

    Raises:
        ConfigurationError: its width or its density is not 1.
    """
    if level.width != 1.0:
        raise ConfigurationError(
            f"Expected the first level to be the global model, of width 1, but got level {level.name} of width "
            f"{level.width}: widths are relative; make the net itself smaller (its hidden sizes)"
        )
    if level.density != 1.0:
        raise ConfigurationError(
            f"Expected the first level to be the global model, of density 1, but got level {level.name} of density "
            f"{level.density:g}"
        )
