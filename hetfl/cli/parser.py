"""The parser: errors in one line, and configuration files that are checked before they are read."""

from __future__ import annotations

import inspect
import re
import traceback
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace, get_loader, set_loader  # type: ignore[attr-defined]
from lightning.pytorch.cli import LightningArgumentParser

from hetfl.cli.config_files import config_file
from hetfl.cli.debugging import debugging
from hetfl.cli.errors import condense
from hetfl.cli.suggesting import with_suggestion
from hetfl.cli.whole_levels import options_with_whole_levels, with_whole_levels
from hetfl.errors import ConfigurationError
from hetfl.reading import LOADER, TooMuch, check_yaml, read_bytes

EXPORT = ("--level", "--format", "--out")
"""Options of ``export`` that may be given only once, because a call exports one file."""
SEED = re.compile(r"(?:--)?(model|data)\.(?:init_args\.)?seed(=|$)")
YAML_MARKS = (":", "{", "\n")
"""A value of ``-c`` with one of these characters may be YAML text, and is passed to jsonargparse."""
CONFIG_OPTIONS = ("-c", "--config")
"""Options whose next argument is a configuration."""
MARKUP = re.compile(r":\w+:`~?([^`]+)`")
"""A reference in a docstring, such as :class:`~hetfl.Level`, and its text."""
MODE = "hetfl"
"""Name of the parser mode of jsonargparse for YAML with limits on its size."""


def _load(text: str) -> Any:
    """Return the values of a configuration file, or of a value on the command line.

    Raises:
        TooMuch: the text exceeds the limits of :mod:`hetfl.reading`.
    """
    check_yaml(text)
    return with_whole_levels(get_loader("yaml")(text))


set_loader(MODE, _load, exceptions=(yaml.YAMLError,))


class _ConfigOption(ActionConfigFile):
    """``-c``: a file, the name of a packaged configuration, or YAML text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Read the configuration.

        Raises:
            ConfigurationError: there is no such file or packaged configuration.
        """
        is_text = any(mark in values for mark in YAML_MARKS)
        file = values if is_text else config_file(values)
        super().__call__(parser, namespace, file, option_string)  # type: ignore[no-untyped-call]


class OneLineParser(LightningArgumentParser):
    """A parser with one-line errors and exit status 2, without abbreviations, and without functions as ``class_path``.

    jsonargparse would call any function that is given as ``class_path`` and use its result.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **{"parser_mode": MODE, **kwargs})

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Add an argument; arguments for configuration files also take names of packaged configurations."""
        if settings.get("action") is ActionConfigFile:
            settings |= {"action": _ConfigOption, "help": "A configuration file, or a name that hetfl configs lists."}
        return super().add_argument(*names, **settings)

    def add_function_arguments(self, function: Any, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse a function as ``class_path``: settings are classes and their arguments.

        Raises:
            ValueError: always; jsonargparse reports it with the key.
        """
        name = f"{function.__module__}.{function.__qualname__}" if inspect.isroutine(function) else repr(function)
        raise ValueError(f"Expected a class as class_path but got {name:.200}, which is not a class")

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print the key and the innermost reason of an error of jsonargparse, and exit."""
        if not self.exit_on_error:  # the parser of one of several classes; the outer parser prints the error
            raise ArgumentError(None, self.suggesting(message, ex)) from ex
        if ex is not None and debugging():
            traceback.print_exception(ex)
        self.exit(2, f"hetfl: error: {condense(self.suggesting(message, ex))}\n")

    def format_help(self, *given: Any, **settings: Any) -> str:
        """Return the help without the markup of docstrings."""
        return MARKUP.sub(r"\1", super().format_help(*given, **settings))

    def suggesting(self, message: str, ex: Exception | None) -> str:
        """Return a message with the nearest name that this parser, or the one of the verb, has to an unknown name."""
        parser = getattr(ex, "subcommand_parser", self)
        return with_suggestion(message, [action.dest for action in parser._actions])

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """Parse arguments; jsonargparse passes null for a nested option as the text ``None``."""
        if args is not None and not self.exit_on_error:
            args = [re.sub(r"^(--[^=]+)=None$", r"\1=null", argument) for argument in args]
        return super().parse_args(args if args is None else options_with_whole_levels(args), *rest, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Check and read a configuration file."""
        check_file(Path(path))
        config: Namespace = super().parse_path(path, *args, **kwargs)
        return config


def files_first(args: Sequence[str]) -> list[str]:
    """Return arguments with the configuration files before the other options, so that options override files.

    jsonargparse applies arguments in their order. The order of the files stays, and so does that of the others.

    >>> files_first(["fit", "--trainer.max_epochs", "16", "-c", "base", "--config=run.yaml"])
    ['fit', '-c', 'base', '--config=run.yaml', '--trainer.max_epochs', '16']

    Args:
        args: the arguments, the verb first.
    """
    files: list[str] = []
    others: list[str] = []
    waiting = False  # for the value of -c
    for argument in args[1:]:
        is_option = argument in CONFIG_OPTIONS
        is_whole = argument.startswith("--config=") or (argument.startswith("-c") and not is_option)
        (files if waiting or is_option or is_whole else others).append(argument)
        waiting = is_option and not waiting
    return [*args[:1], *files, *own_seeds(others)]


def own_seeds(args: Sequence[str]) -> list[str]:
    """Return arguments with ``--data.seed`` and ``--model.seed`` as the options that they are short for.

    >>> own_seeds(["fit", "--data.seed=3", "--model.seed", "4"])
    ['fit', '--data_seed=3', '--model_seed', '4']
    """
    return [SEED.sub(r"--\1_seed\2", argument) if argument.startswith("--") else argument for argument in args]


def check_arguments(args: Sequence[str]) -> None:
    """Refuse arguments that would be silently overwritten.

    Raises:
        ConfigurationError: an option of export is given twice.
    """
    given = [argument.partition("=")[0] for argument in args] if args[:1] == ["export"] else []
    for option in EXPORT:
        if given.count(option) > 1:
            raise ConfigurationError(
                f"Expected {option} once but got it {given.count(option)} times: export one file per call"
            )


def check_file(path: Path) -> None:
    """Refuse a configuration file that is invalid or that YAML would read in an unexpected way.

    Raises:
        ConfigurationError: the file is not text, not YAML, empty or not a mapping, has a key twice, or sets a seed
            among the arguments of model or data.
    """
    try:
        text = read_bytes(path).decode()
        check_yaml(text)
        tree = yaml.compose(text, Loader=LOADER)
    except TooMuch as error:
        raise error.inside(path) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"Expected text in {path} but got other bytes ({error.reason})") from error
    except OSError as error:
        raise ConfigurationError(f"Expected a configuration file but got {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigurationError(f"Expected YAML in {path} but got, in line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"Expected YAML in {path} but got: {' '.join(str(error).split())}") from error
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigurationError(f"Expected settings in {path} but got {'none' if tree is None else 'no mapping'}")
    for key, line, again in _keys(tree):
        if again:
            raise ConfigurationError(f"Expected every key once in {path} but got {key} again in line {line}")
        _check_seed(key, f" in {path}")


def _keys(node: yaml.Node, prefix: str = "", seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, int, bool]]:
    """Yield each key below a node, in dotted form, with its line and whether it is a repetition."""
    if id(node) in seen:  # an alias of a node that contains it
        return
    seen |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _keys(item, f"{prefix}[{number}].", seen)
    if isinstance(node, yaml.MappingNode):
        known: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            yield prefix + name, key.start_mark.line + 1, name in known and name != "<<"
            known.add(name)
            yield from _keys(value, f"{prefix}{name}.", seen)


def _check_seed(argument: str, where: str) -> None:
    match = SEED.match(argument)
    if match:
        raise ConfigurationError(f"Expected {match[1]}_seed, beside model and data, but got {match[1]}.seed{where}")
