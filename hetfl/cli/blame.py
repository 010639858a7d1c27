"""Errors in the user's code: their class, setting, file and line."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hetfl.errors import ConfigurationError
from hetfl.reading import parse_yaml, read_bytes

DEBUG = "HETFL_DEBUG"
"""Environment variable; with any value except an empty text and 0, errors have tracebacks."""
LIBRARIES = tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib")})


def debugging() -> bool:
    """Return whether errors have tracebacks."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


@contextmanager
def debug_option(args: list[str]) -> Iterator[None]:
    """Remove ``--debug`` from arguments, and let this process and its children show tracebacks."""
    before = os.environ.get(DEBUG)
    if "--debug" in args:
        args.remove("--debug")
        os.environ[DEBUG] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(DEBUG, None)
        else:
            os.environ[DEBUG] = before


@contextmanager
def naming_users_code(config: Namespace) -> Iterator[None]:
    """Add class, setting, file and line to an error that was raised in the user's code.

    Args:
        config: the settings of the verb.

    Raises:
        ConfigurationError: instead of any error from the user's code. The message also has arguments that a file gave
            to another class of the same setting.
    """
    try:
        yield
    except MisconfigurationException:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not users_frames(error):  # such as a full disk; the error names the file
            raise
        chain = _chain(error)
        cause = next((each for each in reversed(chain) if users_frames(each)), None)
        if cause is None or isinstance(cause, ConfigurationError):
            raise
        frames = users_frames(cause)
        frame, line = frames[-1]
        place = f"in {frame.f_code.co_qualname}, {frame.f_code.co_filename} line {line}"
        ours = [str(each) for each in chain if isinstance(each, ConfigurationError) and str(each) not in str(cause)]
        text = ours[0] if ours else f"{type(cause).__name__}: {cause}"
        raise ConfigurationError(f"{text}, {place}{_setting([each for each, _ in frames], config)}") from error


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes; the cause of a ConfigurationError may be only its context."""
    chain = [error]
    while True:
        before = chain[-1].__cause__
        if before is None and isinstance(chain[-1], ConfigurationError):
            before = chain[-1].__context__
        if before is None or before in chain:
            return chain
        chain.append(before)


def users_frames(error: BaseException) -> list[tuple[FrameType, int]]:
    """Return the frames of the traceback of an error, with their lines, that are neither of hetfl nor of a library."""
    return [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if _is_users(frame)]


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    path = frame.f_code.co_filename
    return package != "hetfl" and not path.startswith("<") and not os.path.realpath(path).startswith(LIBRARIES)


def _setting(frames: Sequence[FrameType], config: Namespace) -> str:
    """Return the setting with a class of the given frames, and its arguments that belong to another class, as text."""
    classes = {frame.f_code.co_qualname.partition(".")[0] for frame in frames}
    modules = {frame.f_globals.get("__name__") for frame in frames}
    named = list(_classes(config))
    matches = [each for each in named if each[1].rpartition(".")[2] in classes]
    matches += [each for each in named if each[1].rpartition(".")[0] in modules]
    if not matches:
        return ""
    key, class_path, arguments = matches[0]
    left = _left_behind(key, class_path, arguments, config.get("config") or [])
    return f" ({key.replace('.init_args', '')}: {class_path}{left})"


def _classes(part: Any, key: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the key, the class path and the arguments of each class among settings."""
    if isinstance(part, list):
        for number, item in enumerate(part):
            yield from _classes(item, f"{key}[{number}]")
    if isinstance(part, Namespace):
        if isinstance(part.get("class_path"), str):
            arguments = part.get("init_args")
            yield key, part.class_path, vars(arguments) if isinstance(arguments, Namespace) else {}
        for name, value in vars(part).items():
            yield from _classes(value, f"{key}.{name}" if key else name)


def _left_behind(key: str, class_path: str, arguments: dict[str, Any], files: Sequence[Any]) -> str:
    """Return the arguments of a class that a configuration file gave to another class of the same setting, as text."""
    left_behind: dict[str, str] = {}
    present = class_path
    for file in files:
        if file is None:  # -c with YAML text: no file to name
            continue
        part: Any = parse_yaml(read_bytes(Path(os.fspath(file))).decode())
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        if isinstance(part, dict):
            present = part.get("class_path", present)
            for name, value in (part.get("init_args") or {}).items():
                left_behind.pop(name, None)
                if present != class_path and name in arguments and arguments[name] == value:
                    left_behind[name] = f"{name}={value} was given to {present} in {file}"
    return "; " + "; ".join(left_behind.values()) if left_behind else ""
