"""Resolution of configuration files and arguments, and checks without training."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning import LightningDataModule
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.callbacks import as_new_run
from hetfl.cli.checks import run_folders
from hetfl.cli.errors import condense
from hetfl.cli.parser import OneLineParser, check_arguments
from hetfl.cli.starting import start
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.runs.headline import Headline


class _RaisingParser(OneLineParser):
    """A parser that raises errors instead of ending the process."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(condense(self.suggesting(message, ex))) from ex


class _Reading(FederatedCLI):
    """A CLI that only parses."""

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        config = self.config["fit"]
        check_comparable(config)
        self.resolved: Namespace = as_new_run(config)

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def text(self, seed: int) -> str:
        """Return the configuration of a new run with a seed, as YAML."""
        config = deepcopy(self.resolved)
        config.seed_everything = seed
        text: str = self._parser("fit").dump(config, skip_unset=False, skip_validation=True)
        return text


class _Rehearsal(FederatedTrainer):
    """A trainer that does everything before the first round, and no round."""

    def fit(
        self,
        model: FederatedModule,  # type: ignore[override]
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Load the data, build every level and check that the levels nest."""
        assert datamodule is not None
        with contextlib.redirect_stdout(io.StringIO()):  # the description itself is not wanted
            self.describe(model, datamodule)


class _Rehearsing(FederatedCLI):
    """A CLI that parses, makes all objects and sets them up, without a run folder.

    Args:
        given: as of the base class.
        loaded: takes the data of this run, under its settings; if they are there already, the run has that data.
        settings: as of the base class.
    """

    def __init__(self, *given: Any, loaded: dict[str, LightningDataModule], **settings: Any) -> None:
        self.loaded = loaded
        super().__init__(*given, **settings)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        trainer = self.config["fit"].trainer
        trainer.logger = trainer.enable_progress_bar = False

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        config = self.config["fit"]
        settings = repr((config.seed_everything, config.data_seed, config.data))
        known = self.loaded.get(settings, self.datamodule)
        self.loaded.clear()  # one data set in memory is enough
        self.datamodule = self.loaded[settings] = known

    def after_fit(self) -> None:
        pass


def check_comparable(config: Namespace) -> None:
    """Refuse settings that a run of a comparison cannot have.

    Raises:
        ConfigurationError: the run has no end, no validation, no metrics or no run folder, or starts from a checkpoint.
    """
    if config.get("ckpt_path"):
        raise ConfigurationError(f"Expected a run without ckpt_path but got ckpt_path {config.ckpt_path}")
    rounds = config.trainer.max_epochs
    if rounds is None or rounds < 1:
        raise ConfigurationError(f"Expected trainer.max_epochs, the number of rounds, of at least 1 but got {rounds}")
    every = config.trainer.check_val_every_n_epoch
    if every is not None and every > rounds:
        raise ConfigurationError(f"Expected trainer.check_val_every_n_epoch of at most {rounds} rounds but got {every}")
    if config.trainer.fast_dev_run or config.trainer.barebones:
        raise ConfigurationError("Expected neither trainer.fast_dev_run nor barebones: they keep no metrics")
    if (count := len(run_folders(config))) != 1:
        raise ConfigurationError(f"Expected one hetfl.runs.RunFolder in trainer.logger but got {count}")


@contextlib.contextmanager
def naming(run: str) -> Iterator[None]:
    """Add the name of a run to errors.

    Raises:
        ConfigurationError: instead of an error that a user can correct.
    """
    try:
        yield
    except (ConfigurationError, MisconfigurationException) as error:
        raise ConfigurationError(f"run {run}: {condense(str(error))}") from error
    except OSError as error:
        if error.filename is None:
            raise
        raise ConfigurationError(f"run {run}: {error.filename}: {error.strerror}") from error


def resolve(args: Sequence[str], seeds: Sequence[int]) -> dict[int, str]:
    """Return the complete configuration of a new run for each seed, as YAML.

    Args:
        args: arguments of ``hetfl fit``, without the verb.
        seeds: the seeds.

    Raises:
        ConfigurationError: the arguments or the files are wrong.
    """
    check_arguments(["fit", *args])
    cli = start(["fit", *args], cli=_Reading, parser=_RaisingParser)
    assert isinstance(cli, _Reading)
    return {seed: cli.text(seed) for seed in seeds}


def rehearse(args: Sequence[str], loaded: dict[str, LightningDataModule]) -> Headline:
    """Do everything before the first round: load the data, build every level, check that the levels nest.

    Args:
        args: arguments of ``hetfl fit``, without the verb.
        loaded: the data of the rehearsal before, or empty. Data with the same settings is not loaded again.

    Returns:
        The score by which models are compared.

    Raises:
        ConfigurationError: a run would fail before its first round.
    """
    cli = start(["fit", *args], cli=partial(_Rehearsing, loaded=loaded), trainer=_Rehearsal, parser=_RaisingParser)
    headline: Headline = cli.model.objective.headline
    return headline
