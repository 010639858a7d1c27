"""The command line: ``hetfl fit | validate | test | describe | resume | data | export | unlearn | compare | ...``.

PyTorch and Lightning are imported only for verbs that need them: ``hetfl flower`` watches processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hetfl
from hetfl.arguments import suggestion
from hetfl.cli.debugging import debug_option
from hetfl.cli.helping import ALL, OF_SETTINGS, VERBS, asked_for_help
from hetfl.cli.one_line import command_line
from hetfl.errors import ConfigurationError
from hetfl.importing import imported

if TYPE_CHECKING:
    from hetfl.cli.app import FederatedCLI, FederatedTrainer

__all__ = ["FederatedCLI", "FederatedTrainer", "main"]

OF_RUNS = {"resume": "fit", "export": "export"}
"""Verbs that take the folder of a run, and the verb of their long form."""


MODULES = {
    "compare": "hetfl.compare.main",
    "report": "hetfl.cli.reporting",
    "flower": "hetfl.flower.command.main",
    "data": "hetfl.cli.data_command",
    "configs": "hetfl.cli.configs_command",
    "unlearn": "hetfl.cli.unlearning",
    "init": "hetfl.cli.init_command",
}
"""Verbs outside of Lightning's CLI, and the modules of their functions ``main``, imported only when needed."""


WATCHING = ("flower",)
"""Verbs that only start and watch other processes."""


def __getattr__(name: str) -> Any:
    """Import a class of the command line."""
    if name in ("FederatedCLI", "FederatedTrainer"):
        return getattr(import_module("hetfl.cli.app"), name)
    raise AttributeError(f"module 'hetfl.cli' has no attribute {name!r}")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: the arguments; None: those of the process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if (text := asked_for_help(given)) is not None:
        print(text, end="")
    elif given == ["--version"]:
        print(f"hetfl {hetfl.__version__}")
    else:
        _run(["--help" if argument == ALL and given[0] in OF_SETTINGS else argument for argument in given])


def _run(given: list[str]) -> None:
    if given[0] not in WATCHING:
        imported("hetfl.cli.starting")  # before command_line: Lightning sets the level of its messages
    with debug_option(given), command_line():
        _check_verb(given)
        if given[:1] and given[0] in MODULES:
            imported(MODULES[given[0]]).main(given[1:])
            return
        from hetfl.cli.parser import check_arguments
        from hetfl.cli.starting import start

        long = _of_run(given)
        check_arguments(long)
        if given[:1] == ["resume"]:
            from hetfl.cli.finishing import ResumedRun

            start(long, cli=partial(ResumedRun, folder=Path(given[1]), settings=given[2:]))
        else:
            start(long)


def _check_verb(given: Sequence[str]) -> None:
    """Refuse a first argument that is neither a verb nor an option.

    Raises:
        ConfigurationError: it is something else.
    """
    if given and given[0] not in VERBS and not given[0].startswith("-"):
        near = suggestion(given[0], list(VERBS))
        raise ConfigurationError(f"Expected a verb, which hetfl --help lists, but got {given[0]!r}{near}")


def _of_run(args: list[str]) -> list[str]:
    """Return ``resume RUN ...`` and ``export RUN ...`` in long form, with the configuration and checkpoint of the run.

    Other arguments are returned unchanged.

    Raises:
        ConfigurationError: the run folder is missing, or has no configuration.
    """
    verb = args[0] if args else ""
    in_long_form = verb == "export" and len(args) > 1 and args[1].startswith("-")
    if verb not in OF_RUNS or in_long_form:
        return args
    folder = Path(args[1]) if len(args) > 1 else None
    if folder is None or not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"Expected a run folder with a config.yaml after {verb} but got {folder or 'nothing'}")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    return [OF_RUNS[verb], "-c", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint), *args[2:]]
