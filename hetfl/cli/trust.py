"""Which code a configuration may name: it is imported, and its classes are made.

A configuration is code. One that runs what its author likes needs no fault in this package: it names a class of a
module that lies beside it. So ``HETFL_TRUSTED`` says which packages may be named at all; nothing else is imported.
What is refused with and without it: functions as ``class_path`` (:class:`hetfl.cli.parser.OneLineParser`), modules of
Python that start processes or touch files (jsonargparse's list), and classes for arguments of any type.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import Namespace, set_parsing_settings

from hetfl.errors import ConfigurationError

VARIABLE = "HETFL_TRUSTED"
USUAL = ("hetfl", "torch", "torchvision", "torchmetrics", "lightning", "flwr_datasets")
"""Packages that are enough for every file in ``configs/``; what a node of Flower trusts if nobody says otherwise."""
EVERYTHING = "*"


def trusted_packages(usual: Sequence[str] | None = None) -> tuple[str, ...] | None:
    """Return the packages, or beginnings of dotted paths, that a configuration may name; None: any.

    ``HETFL_TRUSTED`` holds them, divided by commas: ``hetfl,torch,lightning,mine.nets``. With a plus before one of
    them, as in ``+mine``, all of :data:`USUAL` belong to them; ``*`` stands for everything. ``hetfl`` always belongs.

    Args:
        usual: those where the variable is not set; None: any.

    Raises:
        ConfigurationError: the variable holds something else.
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
                f"Expected packages divided by commas in {VARIABLE}, such as hetfl,torch,mine, but got {name!r:.60}"
            )
        packages[package] = None
    return tuple(packages)


def restrict_imports(packages: Sequence[str] | None) -> None:
    """Have jsonargparse import nothing else from now on, whatever is parsed, for as long as the process lives.

    Modules of Python that start processes, load code or touch files are refused in any case, unless they are named
    among the packages. An argument without a type gets a class path as it stands: nothing is made of it.

    Args:
        packages: as :func:`trusted_packages` returns them.
    """
    set_parsing_settings(
        validate_subclass_spec_in_any=True,
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=[] if packages is None else [EVERYTHING],
        import_path_allowlist=[*(packages or ())],
    )


def check_class_paths(config: Any, packages: Sequence[str] | None) -> None:
    """Refuse class paths of other packages, wherever they stand: also where jsonargparse takes them for mere values.

    Args:
        config: settings that have been parsed, and nothing made of them yet.
        packages: as :func:`trusted_packages` returns them.

    Raises:
        ConfigurationError: there is one; names its key and the path.
    """
    if packages is None:
        return
    for key, path in class_paths(config):
        if "." in path and not any(path == package or path.startswith(f"{package}.") for package in packages):
            raise ConfigurationError(f"{key}: Expected a class of {', '.join(packages)} ({VARIABLE}) but got {path}")


def class_paths(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each class path in settings, and its key."""
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
