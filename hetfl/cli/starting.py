"""How Lightning's CLI is started here: with our defaults, quietly, and with what is wrong in one line."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

import hetfl
from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.blame import debugging
from hetfl.cli.callbacks import SaveRunConfig
from hetfl.cli.errors import condense
from hetfl.cli.parser import OneLineParser
from hetfl.data import FederatedDataModule
from hetfl.errors import LONGEST_MESSAGE, ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.printable import printable

MORE_VERBS = (
    "More verbs: init [FOLDER]; configs [NAME]; resume RUN; data -c FILE; compare -r NAME=FILE -r NAME=FILE --out DIR; "
    "report RUN... --out DIR; flower server|client|demo ..."
)


def start(
    args: Sequence[str],
    cli: Callable[..., FederatedCLI] = FederatedCLI,
    trainer: type[FederatedTrainer] = FederatedTrainer,
    parser: type[OneLineParser] = OneLineParser,
) -> FederatedCLI:
    """Parse arguments of ``fit`` or another of the CLI's verbs and do what they say.

    Args:
        args: the arguments, the verb first.
        cli: makes the CLI.
        trainer: the trainer's class.
        parser: the parser's class.
    """
    return cli(
        FederatedModule,
        FederatedDataModule,
        save_config_callback=SaveRunConfig,
        trainer_class=trainer,
        trainer_defaults={
            "logger": {"class_path": "hetfl.runs.RunFolder"},
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        parser_class=parser,
        parser_kwargs={"prog": "hetfl", "version": hetfl.__version__, "epilog": MORE_VERBS},
        auto_configure_optimizers=False,
        args=list(args),
    )


@contextmanager
def command_line() -> Iterator[None]:
    """Be quiet, find classes of the user's own beside where the command is typed, and fail in one line.

    Raises:
        SystemExit: with status 2 for what the user can put right, with 1 for a disk that is full or read-only.
    """
    _quiet()
    if os.getcwd() not in sys.path:  # by name: jsonargparse reads a file from within its folder
        sys.path.append(os.getcwd())
    try:
        yield
    except (ConfigurationError, MisconfigurationException) as error:
        if debugging():
            traceback.print_exception(error)
        _fail(str(error), status=2)
    except RuntimeError as error:
        if "Early stopping conditioned on metric" not in str(error):
            raise
        _fail(str(error), status=2)
    except OSError as error:  # a full or read-only disk is nobody's mistake in code
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", status=1)


def _fail(message: str, status: int) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")  # of a distributed trainer: most mistakes are those of all its processes
    sys.stderr.write(f"hetfl: error: {'' if rank == '0' else f'rank {rank}: '}{condense(message)}\n")
    sys.exit(status)


class _Stderr(logging.Handler):
    """Writes what the framework logs, a line each, to wherever standard error goes at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{printable(record.getMessage(), LONGEST_MESSAGE)}\n")


def _quiet() -> None:
    """Show what the framework logs; silence what Lightning says about training in general and what is not so here."""
    own = logging.getLogger("hetfl")
    own.setLevel(logging.INFO)
    own.handlers = [_Stderr()]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*litlogger.*",
        ".*treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
