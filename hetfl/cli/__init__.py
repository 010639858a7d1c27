"""The command line: ``hetfl fit | resume | validate | test | describe | export``, Lightning's CLI over YAML files."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

import hetfl
from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.callbacks import SaveRunConfig
from hetfl.cli.errors import condense
from hetfl.cli.parser import OneLineParser, check_arguments
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule

__all__ = ["FederatedCLI", "FederatedTrainer", "main"]

OF_RUNS = {"resume": "fit", "export": "export"}
"""Verbs that take the folder of a run, and the verb that each is in long form."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: the arguments; None: those of the process.
    """
    _quiet()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes of the user's own, beside where the command is typed
    try:
        given = _of_run(list(sys.argv[1:] if args is None else args))
        check_arguments(given)
        _run(given)
    except (ConfigurationError, MisconfigurationException) as error:
        _fail(str(error), status=2)
    except RuntimeError as error:
        if "Early stopping conditioned on metric" not in str(error):
            raise
        _fail(str(error), status=2)
    except OSError as error:  # a full or read-only disk is nobody's mistake in code
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", status=1)


def _run(args: list[str]) -> None:
    FederatedCLI(
        FederatedModule,
        FederatedDataModule,
        save_config_callback=SaveRunConfig,
        trainer_class=FederatedTrainer,
        trainer_defaults={
            "logger": {"class_path": "hetfl.run_folder.RunFolder"},
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        parser_class=OneLineParser,
        parser_kwargs={"prog": "hetfl", "version": hetfl.__version__},
        auto_configure_optimizers=False,
        args=args,
    )


def _fail(message: str, status: int) -> None:
    sys.stderr.write(f"hetfl: error: {condense(message)}\n")
    sys.exit(status)


def _of_run(args: list[str]) -> list[str]:
    """Return ``resume RUN ...`` and ``export RUN ...`` in long form: with the run's configuration and checkpoint.

    Everything else is returned as it was given.

    Raises:
        ConfigurationError: no run folder is named, or it has no configuration.
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


def _quiet() -> None:
    """Silence what Lightning says about training in general and what is not so here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*litlogger.*",
        ".*treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
