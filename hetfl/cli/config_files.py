"""The file of ``-c NAME``: a file of the user, or a configuration that is installed with the package."""

from __future__ import annotations

from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from hetfl.errors import ConfigurationError

FOLDER = Path(__file__).resolve().parent.parent / "configs"
"""Folder of the packaged configurations. In a checkout it is a link to ``configs/`` at top level."""
SUFFIX = ".yaml"
MOST_NAMES = 3
"""Maximum number of names that a message proposes."""
LEAST_LIKENESS = 0.6
"""Smallest similarity, from 0 to 1, of a name that a message proposes."""


@cache
def packaged_names() -> tuple[str, ...]:
    """Return the names of the packaged configurations, such as ``method/fedprox``; first those without a folder."""
    names = [file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob(f"*{SUFFIX}")]
    return tuple(sorted(names, key=lambda name: ("/" in name, name)))


def packaged_file(name: str) -> Path | None:
    """Return the file of a packaged configuration; None: no packaged configuration has this name.

    Args:
        name: such as ``method/fedprox``, with or without ``.yaml``.
    """
    known = name.removesuffix(SUFFIX)
    return FOLDER / f"{known}{SUFFIX}" if known in packaged_names() else None


def config_file(name: str) -> str:
    """Return the path of the configuration that ``-c NAME`` means.

    A file with exactly this name has priority. Otherwise the name is looked up among the packaged configurations.

    Args:
        name: a path, or the name of a packaged configuration.

    Raises:
        ConfigurationError: neither exists; the message has the most similar names.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return name
    packaged = packaged_file(name)
    if packaged is None:
        reason = "it is not a file but a folder" if name and path.is_dir() else "there is no such file"
        raise ConfigurationError(
            "Expected a configuration file or a name that hetfl configs lists but got "
            f"{name!r}: {reason}{near_names(name)}"
        )
    return str(packaged)


def near_names(name: str) -> str:
    """Return ``; the nearest names are ...`` for an unknown name: packaged ones and files; empty if none is near."""
    wanted = name.removesuffix(SUFFIX).removeprefix("configs/")
    likeness = {known: _likeness(wanted, known) for known in packaged_names()}
    likeness |= {str(file): _likeness(name, str(file)) for file in Path(name).parent.glob(f"*{SUFFIX}")}
    near = sorted(
        (known for known in likeness if likeness[known] >= LEAST_LIKENESS), key=lambda known: -likeness[known]
    )
    if not near:
        return ""
    return f"; the nearest name{'s are' if near[1:] else ' is'} {', '.join(near[:MOST_NAMES])}"


def _likeness(wanted: str, known: str) -> float:
    """Return the similarity of two names or of their last parts, from 0 to 1."""
    pairs = ((wanted, known), (wanted.rpartition("/")[2], known.rpartition("/")[2]))
    whole, last = (SequenceMatcher(None, one.lower(), other).ratio() for one, other in pairs)
    return max(whole, last)
