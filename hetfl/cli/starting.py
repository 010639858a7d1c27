"""Start of Lightning's CLI with the defaults of hetfl."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hetfl
from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.callbacks import SaveRunConfig
from hetfl.cli.parser import OneLineParser, files_first
from hetfl.data import FederatedDataModule
from hetfl.federation import FederatedModule
from hetfl.session.defaults import SETTINGS


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
            **SETTINGS,
        },
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        parser_class=parser,
        parser_kwargs={"prog": "hetfl", "version": hetfl.__version__},
        auto_configure_optimizers=False,
        args=files_first(args),
    )
