"""``hetfl data``: a table and a figure of the partition of the data, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning import LightningModule
from lightning.pytorch.cli import LightningArgumentParser

from hetfl.analysis.data_plots import write_labels
from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.checks import check_trainer
from hetfl.cli.starting import start
from hetfl.data import FederatedDataModule, client_table
from hetfl.display.data_table import show_data
from hetfl.federation import FederatedModule


def main(args: Sequence[str]) -> None:
    """Print and draw the partition of the data.

    Args:
        args: arguments of ``hetfl fit``, without the verb, and ``--out``; the model may be missing.

    Raises:
        ConfigurationError: the settings cannot work, or the folder cannot be written.
    """
    start(["data", *args], cli=_DataCLI, trainer=_DataTrainer)


class _DataTrainer(FederatedTrainer):
    """A trainer that only shows the data."""

    def show_data(
        self,
        model: LightningModule | None,
        datamodule: FederatedDataModule,
        out: str = "data_report",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Print and draw the data of each client: sizes, labels, distance from the global class mix; run nothing.

        Args:
            model: not used; may be missing.
            datamodule: the data.
            out: the folder to write labels.png, labels.svg and clients.csv into.
            ckpt_path: not used; accepted so that a configuration of fit works for data.
            weights_only: not used; accepted for the same reason.
        """
        datamodule.prepare_data()
        datamodule.setup("fit")
        clients = client_table(datamodule)
        files = write_labels(clients, Path(out))
        show_data(datamodule, clients)
        print(f"{'written':<18}{' '.join(map(str, files))}")

    data = show_data  # a method of that name would give jsonargparse two groups called data


class _DataCLI(FederatedCLI):
    """A CLI that takes every configuration of fit, with or without a model."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"data": {"model", "datamodule"}}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(_DataTrainer, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(FederatedModule, "model", subclass_mode=True, required=False)
        parser.add_lightning_class_args(FederatedDataModule, "data", subclass_mode=True)

    def before_instantiate_classes(self) -> None:
        check_trainer(self.config["data"].trainer)
