"""Trust: the packages whose classes a configuration may use.

A configuration can run any code, because the classes in it are imported and made. ``HETFL_TRUSTED`` limits the packages
that a configuration may use; nothing else is imported. With and without it, these are refused: functions as
``class_path`` (:class:`hetfl.cli.parser.OneLineParser`), modules of Python that start processes or access files
(jsonargparse's list), and classes for arguments without a type.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from hetfl.errors import ConfigurationError

VARIABLE = "HETFL_TRUSTED"
USUAL = ("hetfl", "torch", "torchvision", "torchmetrics", "lightning", "flwr_datasets")
"""Packages that suffice for every file in ``configs/``; the default of a node of Flower."""
EVERYTHING = "*"


def trusted_packages(usual: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Return the packages, or prefixes of dotted paths, that a configuration may use; None: all.

    ``HETFL_TRUSTED`` is a list with commas, such as ``hetfl,torch,lightning,mine.nets``. A plus before a name, as in
    ``+mine``, adds all of :data:`USUAL`; ``*`` means all packages. ``hetfl`` is always included.

    Args:
        usual: the packages if the variable is not set; None: all.

    Raises:
        ConfigurationError: the variable has another form.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None if usual is None else tuple(usual)
    names = [name.strip() for name in text.split(",")]
    if EVERYTHING in names:
        return None
    packages = dict.fromkeys(["hetfl", *(USUAL if any(name.startswith("+") for name in names) else ())])
    for name in names:
        package = name.removeprefix("+")
        if not all(part.isidentifier() for part in package.split(".")) or package.partition(".")[0] == "jsonargparse":
            raise ConfigurationError(
                f"Expected packages separated by commas in {VARIABLE}, such as hetfl,torch,mine, but got {name!r:.60}"
            )
        packages[package] = None
    return tuple(packages)


def restrict_imports(packages: Sequence[str] | None) -> None:
    """Let jsonargparse import only trusted packages, for the rest of the process.

    Modules of Python that start processes, load code or access files are refused unless they are among the packages.
    For an argument without a type, a class path stays a plain value, and no object is made.

    Args:
        packages: the result of :func:`trusted_packages`.
    """
    set_parsing_settings(
        validate_subclass_spec_in_any=True,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=[] if packages is None else [EVERYTHING],
        import_path_allowlist=[*(packages or ())],
    )


def check_class_paths(config: Any, packages: Sequence[str] | None) -> None:
    """Refuse class paths of other packages at any depth, also those that jsonargparse treats as plain values.

    Args:
        config: parsed settings, before objects are made.
        packages: the result of :func:`trusted_packages`.

    Raises:
        ConfigurationError: a class path is not trusted; the message has its key.
    """
    if packages is None:
        return
    for key, path in class_paths(config):
        if "." in path and not any(path == package or path.startswith(f"{package}.") for package in packages):
            raise ConfigurationError(f"{key}: Expected a class of {', '.join(packages)} ({VARIABLE}) but got {path}")


def class_paths(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value of each class path in settings."""
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(config, Namespace):
        pairs = iter(vars(config).items())
    elif isinstance(config, Mapping):
        pairs = iter(config.items())
    elif isinstance(config, list | tuple):
        pairs = iter(enumerate(config))
    for name, value in pairs:
        place = f"{key}.{name}" if key else str(name)
        if isinstance(value, str) and place.rpartition(".")[2] == "class_path":
            yield place, value
        yield from class_paths(value, place)
