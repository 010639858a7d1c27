"""Start of Lightning's CLI with the defaults of hetfl, fewer messages, and one-line errors."""

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
from hetfl.cli.parser import OneLineParser, files_first
from hetfl.data import FederatedDataModule
from hetfl.errors import LONGEST_MESSAGE, ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.printable import printable


def start(
    args: Sequence[str],
    cli: Callable[..., FederatedCLI] = FederatedCLI,
    trainer: type[FederatedTrainer] = FederatedTrainer,
    parser: type[OneLineParser] = OneLineParser,
) -> FederatedCLI:
    """Parse the arguments of ``fit`` or another verb of the CLI, and run the verb; options override files.

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
        parser_kwargs={"prog": "hetfl", "version": hetfl.__version__},
        auto_configure_optimizers=False,
        args=files_first(args),
    )


@contextmanager
def command_line() -> Iterator[None]:
    """Suppress messages, make the current directory importable, and turn errors into one line.

    Raises:
        SystemExit: with status 2 for errors that the user can correct, with 1 for a full or read-only disk.
    """
    _quiet()
    if os.getcwd() not in sys.path:  # not "": jsonargparse changes the directory while it reads a file
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
    except OSError as error:  # a full or read-only disk is not a fault of the code
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", status=1)


def _fail(message: str, status: int) -> None:
    rank = os.environ.get("LOCAL_RANK", "0")  # with several processes most errors occur in all of them
    sys.stderr.write(f"hetfl: error: {'' if rank == '0' else f'rank {rank}: '}{condense(message)}\n")
    sys.exit(status)


class _Stderr(logging.Handler):
    """A handler that writes one line per record to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{printable(record.getMessage(), LONGEST_MESSAGE)}\n")


def _quiet() -> None:
    """Show the messages of hetfl; suppress general messages of Lightning and those that do not apply to hetfl."""
    logger = logging.getLogger("hetfl")
    logger.setLevel(logging.INFO)
    logger.handlers = [_Stderr()]
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*litlogger.*",
        ".*treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
