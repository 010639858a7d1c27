"""Lightning's CLI with federated defaults: trainer, run folder, progress, summary, checkpoints."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from hetfl.cli.blame import naming_users_code
from hetfl.cli.callbacks import dumped
from hetfl.cli.checks import NOT_RUNS, as_configuration, check_settings, run_folders
from hetfl.cli.exporting import export_line, export_target
from hetfl.cli.loggers import add_run_folder, go_on_tracking
from hetfl.cli.trust import check_class_paths, restrict_imports, trusted_packages
from hetfl.display import RoundProgress, RunSummary, describe
from hetfl.export import check_export, export_adapter, export_submodel
from hetfl.federation import FederatedModule
from hetfl.importing import earlier_objects_frozen
from hetfl.reading import parse_yaml
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.interrupt import StopAtRoundEnd
from hetfl.runs.run_folder import note_end
from hetfl.session.defaults import callbacks_of_training, drop_previous, listed, with_run_folder, with_safe_checkpoints
from hetfl.session.drawing import folders_of, print_figures
from hetfl.session.trackers import Trackers, places_of, send_figures
from hetfl.snapshots import Snapshots


class FederatedTrainer(Trainer):
    """Lightning's Trainer with two more verbs."""

    def describe(
        self,
        model: FederatedModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Print levels, parameters, FLOPs and bytes per round, the fleet and the data; run nothing.

        Args:
            model: the module.
            datamodule: its data.
            ckpt_path: not used; accepted so that a configuration of fit works for describe.
            weights_only: not used; accepted for the same reason.
        """
        self.introduce(model, datamodule)
        describe(model, model.data)

    def introduce(self, model: FederatedModule, datamodule: LightningDataModule) -> None:
        """Set up a module with its data, and run nothing.

        Args:
            model: the module.
            datamodule: its data.
        """
        self.strategy.connect(model)
        self.state.fn = None
        model.trainer = self
        self.datamodule, datamodule.trainer = datamodule, self
        datamodule.prepare_data()
        datamodule.setup("fit")
        model.setup("fit")

    def export(
        self,
        model: FederatedModule,
        datamodule: LightningDataModule,
        level: str | None = None,
        format: str | None = None,
        out: str | None = None,
        cluster: int | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Test a checkpoint, and write the sub-model of one level to a file with a card beside it.

        Adapters are merged into the net, except for peft, which gets a folder with the adapters alone.

        Args:
            model: the module.
            datamodule: its data.
            level: name of the level; null: the largest.
            format: safetensors (the net, for Python), onnx (the prediction, for onnxruntime and others) or peft (the
                adapters, a folder); null: the suffix of ``out``, or else safetensors.
            out: a file with the suffix of a format, or a folder; null: the folder ``export`` of the run.
            cluster: number of the global model, if there are several (see column ``cluster`` of ``clients.csv``).
            ckpt_path: the checkpoint; null: the current model.
            weights_only: as in Lightning's ``test``.
        """
        level = model.levels.largest if level is None else level
        path = export_target(level if cluster is None else f"{level}-cluster-{cluster}", format, out, ckpt_path)
        if path.suffix == ".peft":
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)
            if self.is_global_zero:
                entries = export_adapter(model, level, path, cluster)
                print(f"{'exported':<18}{path} (level {level}, {entries:,} trained parameters)")
            return
        check_export(model, level, path)
        self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)
        if self.is_global_zero:  # every rank tests, and one writes
            print(export_line(path, export_submodel(model, level, path, cluster), model.objective.headline))


class FederatedCLI(LightningCLI):
    """A CLI with ``model`` and ``data`` as classes; run folder, progress, summary and checkpoints are defaults."""

    usually_trusted: ClassVar[Sequence[str] | None] = None
    """Packages that a configuration may use if ``HETFL_TRUSTED`` is not set; None: all packages."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        self.checkpoints: SafeCheckpointIO | None = None  # None: the user's plugin writes checkpoints
        words = sys.argv[1:] if settings.get("args") is None else settings["args"]
        self._asked = words[0] if words else ""
        super().__init__(*given, **settings)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of hetfl, and use one seed for model and data unless one has a seed of its own."""
        parser.add_argument("--final_test", type=bool, default=True, help="Test the last model at the end of fit.")
        parser.add_argument("--plots", type=bool, default=True, help="Draw the figures of the run at the end of fit.")
        parser.add_argument(
            "--plots_every",
            type=int,
            default=0,
            help="Rounds from one drawing of the figures to the next; 0: only at the end.",
        )
        parser.add_lightning_class_args(Snapshots, "snapshots")
        for part in ("model", "data"):
            parser.add_argument(f"--{part}_seed", type=int | None, default=None, help=f"--{part}.seed: its own seed.")
            parser.link_arguments(("seed_everything", f"{part}_seed"), f"{part}.init_args.seed", compute_fn=_seed)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the verbs, and their arguments that are not settings."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "describe": {"model", "datamodule"},
            "export": {"model", "datamodule"},
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if self._asked in self.subcommands() and subcommand != self._asked:  # its parser is not used
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the summary has the results, by level instead of by loader
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments.

        Raises:
            ConfigurationError: jsonargparse refuses a value, or a class is not trusted.
        """
        packages = trusted_packages(self.usually_trusted)
        restrict_imports(packages)
        with as_configuration():  # Lightning's method warns if a program calls main with arguments
            self.config = parser.parse_args(args)
        check_class_paths(self.config, packages)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: checkpoints have no hyperparameters, and only SafeCheckpointIO detects damage."""

    def _dump_config(self) -> None:
        """Do nothing: Lightning would give the settings to modules as hyperparameters, which takes half a second."""
        self.config_dump: dict[str, Any] = {}

    def before_instantiate_classes(self) -> None:
        """Check the settings, and set the run folder of a resumed run.

        Raises:
            ConfigurationError: a setting cannot work.
        """
        config = self.config[self.subcommand]
        if self.subcommand not in NOT_RUNS:
            add_run_folder(config)
        check_settings(str(self.subcommand), config)
        if self.subcommand != "fit" or not config.get("ckpt_path"):
            return
        folder = Path(config.ckpt_path).parent.parent
        is_run = (folder / "metrics.csv").is_file() or (folder / "config.yaml").is_file()
        for run_folder in run_folders(config) if is_run else []:
            run_folder.init_args.folder = str(folder)
        go_on_tracking(config, places_of(folder) if is_run else [])

    def instantiate_classes(self) -> None:
        """Make data, model and trainer.

        Raises:
            ConfigurationError: a constructor refused its arguments.
        """
        with as_configuration(), naming_users_code(self.config[self.subcommand]):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer with the callbacks of hetfl, except those that the user switched off."""
        config = self.config_init[self.subcommand].trainer
        users = [] if self.subcommand in NOT_RUNS else listed(config.callbacks)
        if self.subcommand != "fit":
            users = [callback for callback in users if not isinstance(callback, Checkpoint)]
            kwargs["enable_checkpointing"] = False
            # A checkpoint names the callbacks of training.
            warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        kwargs["callbacks"] = users
        self.trainer_defaults["callbacks"] = [] if self.subcommand in NOT_RUNS else self._callbacks(config, users)
        kwargs["plugins"], self.checkpoints = with_safe_checkpoints(listed(config.plugins))
        if isinstance(config.logger, list):
            kwargs["logger"] = with_run_folder(config.logger)
        if self.subcommand in NOT_RUNS:
            kwargs |= {"logger": False, "enable_progress_bar": False}
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, config: Namespace, users: list[Callback]) -> list[Callback]:
        progress = config.enable_progress_bar is not False
        if self.subcommand != "fit":
            shown = progress and not any(isinstance(each, ProgressBar) for each in users)
            return [RunSummary(), *([RoundProgress()] if shown else [])]
        self.stop, given = StopAtRoundEnd(), self.config["fit"]
        made = callbacks_of_training(
            users,
            self.stop,
            progress=progress,
            checkpoints=config.enable_checkpointing is not False,
            summary=not given.final_test,
            every=given.plots_every,
        )
        return [
            *made,
            Trackers(lambda module: parse_yaml(dumped(self._parser("fit"), given))),
        ]

    def _run_subcommand(self, subcommand: str) -> None:
        with earlier_objects_frozen(), naming_users_code(self.config[subcommand]):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Test the last model and draw the figures, if these are wanted."""
        assert self.trainer is not None
        if self.stop.signal is not None:
            sys.exit(128 + self.stop.signal)
        for folder in (folders := folders_of(self.trainer.loggers)):
            note_end(folder, self.model.models.version, self.trainer.max_epochs or 0)
        if self.config[self.subcommand].final_test:
            self.final_test()
        for folder in folders if self.config[self.subcommand].plots else ():
            self.draw(folder)
        drop_previous(folders, self.checkpoints)

    def final_test(self, checkpoint: str | None = None) -> None:
        """Test the last model of a run.

        Args:
            checkpoint: the checkpoint of the model; None: the current model.
        """
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)

    def draw(self, folder: str | Path, trained: bool = True) -> None:
        """Draw the figures of a run, and print their folder.

        Args:
            folder: the run folder.
            trained: whether there is a trainer, whose loggers get the figures.
        """
        drawn = print_figures(folder)
        if trained:
            send_figures(self.trainer.loggers, drawn, self.model.models.version)


def _seed(seed: int | bool, of_part: int | None) -> int:
    for name, given in (("seed_everything", seed), ("a seed", of_part)):
        if isinstance(given, bool) or (given is not None and not 0 <= given < 2**32):
            raise ValueError(f"Expected a whole number from 0 to {2**32 - 1} for {name} but got {given}")
    return seed if of_part is None else of_part
