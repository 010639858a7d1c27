"""Errors in the user's code and in constructors: their class, setting, file and line."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hetfl.cli.errors import condense
from hetfl.errors import ConfigurationError
from hetfl.reading import parse_yaml, read_bytes

CONSTRUCTORS = ("__init__", "__post_init__")
Setting = tuple[str, str, dict[str, Any]]
"""The key of a class among settings, its class path, and its arguments; the class path of a group is empty."""
LIBRARIES = tuple({os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "purelib", "platlib")})


@contextmanager
def naming_users_code(config: Namespace) -> Iterator[None]:
    """Add class, setting, file and line to an error that was raised in the user's code, or the setting to a refusal.

    Args:
        config: the settings of the verb.

    Raises:
        ConfigurationError: instead of any error from the user's code, and instead of a refusal by the constructor of
            any class of the settings. The message also has arguments that a file gave to another class of the same
            setting.
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
            key = _refusing(chain, config) if isinstance(error, ValueError | TypeError) else ""
            text = condense(str(error))
            if not key or text.startswith(f"{key}:"):
                raise
            raise ConfigurationError(f"{text} ({key})") from error
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


def _refusing(chain: Sequence[BaseException], config: Namespace) -> str:
    """Return the key of the setting whose constructor raised the innermost of the errors; empty if none did.

    If several settings have this class and the arguments of this call, the keys are joined by "or".
    """
    for error in reversed(chain):
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            if frame.f_code.co_name in CONSTRUCTORS:
                made = type(_first_argument(frame))
                matches = [each for each in _classes(config) if _is_of(each, made)]
                exact = [each for each in matches if _agree(each[2], frame.f_locals)]
                if matches:
                    return " or ".join(_dotted(key) for key, _, _ in exact or matches)
    return ""


def _is_of(setting: Setting, made: type) -> bool:
    """Return whether a setting has a class; a group of settings without a class path has those of a dataclass."""
    _, class_path, arguments = setting
    if class_path:
        return resolve_name(class_path) is made
    return is_dataclass(made) and {each.name for each in fields(made)} == set(arguments)


def _agree(arguments: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether the plain ones of a setting's arguments have these values."""
    plain = {name: value for name, value in arguments.items() if isinstance(value, bool | int | float | str)}
    return all(name not in values or values[name] == value for name, value in plain.items())


def _first_argument(frame: FrameType) -> object:
    return frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


def _dotted(key: str) -> str:
    """Return a key as on the command line."""
    return key.replace(".init_args", "")


def _setting(frames: Sequence[FrameType], config: Namespace) -> str:
    """Return the setting with a class of the given frames, and its arguments that belong to another class, as text.

    It is the class of the innermost object whose method was called; else a class of a name or a module of the frames.
    """
    classes = {frame.f_code.co_qualname.partition(".")[0] for frame in frames}
    modules = {frame.f_globals.get("__name__") for frame in frames}
    named = [each for each in _classes(config) if each[1]]
    made = [type(_first_argument(frame)) for frame in reversed(frames)]
    matches = [each for kind in made for each in named if _is_of(each, kind)]
    matches += [each for each in named if each[1].rpartition(".")[2] in classes]
    matches += [each for each in named if each[1].rpartition(".")[0] in modules]
    if not matches:
        return ""
    key, class_path, arguments = matches[0]
    left = _left_behind(key, class_path, arguments, config.get("config") or [])
    return f" ({_dotted(key)}: {class_path}{left})"


def _classes(part: Any, key: str = "") -> Iterator[Setting]:
    """Yield each class among settings, and each group of settings."""
    if isinstance(part, list):
        for number, item in enumerate(part):
            yield from _classes(item, f"{key}[{number}]")
    if isinstance(part, Namespace):
        if isinstance(part.get("class_path"), str):
            arguments = part.get("init_args")
            yield key, part.class_path, vars(arguments) if isinstance(arguments, Namespace) else {}
        elif not key.endswith(".init_args"):
            yield key, "", vars(part)
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
