"""``hetfl unlearn``: prunes the channels that speak for a class, and trains on without the class, as a new run."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule

from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.parser import OneLineParser
from hetfl.cli.starting import start
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.session.callbacks import has_ended
from hetfl.unlearning.callbacks import Asking, Comparing, Findings


def main(args: Sequence[str]) -> None:
    """Unlearn a class of a finished run in a new run.

    Args:
        args: the arguments after the verb.

    Raises:
        ConfigurationError: the run or the options are invalid.
    """
    given = _parser().parse_args(list(args))
    folder, forget = Path(given.run), given["class"]
    if not (folder / "config.yaml").is_file():
        raise ConfigurationError(f"Expected a run folder with a config.yaml after unlearn but got {folder}")
    if forget is None:
        raise ConfigurationError("Expected --class, the number of the class to unlearn, but got none")
    if not 0.0 < given.share < 1.0:
        raise ConfigurationError(f"Expected --share in (0, 1) but got {given.share:g}")
    if given.rounds < 1:
        raise ConfigurationError(f"Expected --rounds of at least 1 but got {given.rounds}")
    options = ["--forget", str(forget), "--share", str(given.share)]
    paths = ["-c", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    cli = start(["unlearn", *paths, *options], cli=partial(_FinishedRun, folder=folder), trainer=_AskingTrainer)
    findings = cast(_AskingTrainer, cli.trainer).findings
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    changed = unlearning_settings(settings, findings, given.rounds, given.name)
    start(["fit", "-c", yaml.safe_dump(changed, sort_keys=False)], cli=partial(_UnlearningRun, findings=findings))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="hetfl unlearn",
        description="Prune the channels that speak most for a class, and train on without the class, as a new run.",
    )
    parser.add_argument("run", metavar="RUN", help="The folder of a finished run.")
    parser.add_argument("--class", type=int, default=None, help="Number of the class to unlearn, from 0.")
    parser.add_argument("--share", type=float, default=0.1, help="Share of the channels of each group to prune.")
    parser.add_argument("--rounds", type=int, default=20, help="Rounds of training without the class.")
    parser.add_argument("--name", type=str, default="unlearn", help="Name of the new run.")
    return parser


def unlearning_settings(settings: dict[str, Any], findings: Findings, rounds: int, name: str) -> dict[str, Any]:
    """Return the settings of a new run: those of the finished run, without the class and the pruned channels.

    Args:
        settings: of the finished run, as in its ``config.yaml``.
        findings: the class and the channels.
        rounds: number of rounds.
        name: of the new run.
    """
    settings = deepcopy(settings)
    trainer = settings["trainer"]
    trainer["max_epochs"] = rounds
    if trainer.get("check_val_every_n_epoch"):  # the last round is validated
        trainer["check_val_every_n_epoch"] = min(trainer["check_val_every_n_epoch"], rounds)
    settings["final_test"] = True
    loggers = trainer["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and logger["class_path"].endswith("RunFolder"):
            logger["init_args"]["name"] = name
    data, model = (settings[part].setdefault("init_args", {}) for part in ("data", "model"))
    data["left_out_classes"] = sorted({*(data.get("left_out_classes") or ()), findings.forget})
    pruned = {"groups": [asdict(group) for group in findings.pruned], "rule": model.get("parts")}
    model["parts"] = {"class_path": "hetfl.parts.PrunedChannels", "init_args": pruned}
    return settings


class _AskingTrainer(FederatedTrainer):
    """A trainer that tests a finished run, and asks its clients."""

    findings: Findings

    def unlearn(
        self,
        model: FederatedModule,
        datamodule: LightningDataModule,
        forget: int,
        share: float,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Test a checkpoint by class, and find the channels that speak for a class.

        Args:
            model: the module.
            datamodule: its data.
            forget: the class.
            share: of the channels of each group.
            ckpt_path: the checkpoint.
            weights_only: as in Lightning's ``test``.
        """
        self.callbacks.append(Asking(partial(setattr, self, "findings"), forget, share))  # type: ignore[attr-defined]
        self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)


class _FinishedRun(FederatedCLI):
    """A CLI with the verb ``unlearn``, for the settings of a finished run.

    Args:
        args: arguments of the CLI.
        folder: the run folder.
        kwargs: keyword arguments of the CLI.
    """

    def __init__(self, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"unlearn": {"model", "datamodule"}}

    def before_instantiate_classes(self) -> None:
        """Check that the run is finished, and that its state is here.

        Raises:
            ConfigurationError: the run is unfinished, has several models, or is a run on Flower.
        """
        super().before_instantiate_classes()
        check_finished(self.folder, self.config["unlearn"])


def check_finished(folder: Path, config: Namespace) -> None:
    """Refuse a run that cannot unlearn.

    Args:
        folder: the run folder.
        config: the settings of the run.

    Raises:
        ConfigurationError: the run is unfinished, has several models, or is a run on Flower.
    """
    checkpoint = SafeCheckpointIO().load_checkpoint(config.ckpt_path)
    state = checkpoint.get("hetfl", {})
    if not has_ended(checkpoint, config.trainer.max_epochs):
        raise ConfigurationError(
            f"Expected a finished run but got {state.get('version', 0)} of {config.trainer.max_epochs} rounds in "
            f"{folder}: hetfl resume it"
        )
    if state.get("models", 1) > 1:
        raise ConfigurationError(f"Expected a run with one global model to unlearn a class but got {state['models']}")
    if state.get("pieces", {}).get("clients"):
        raise ConfigurationError(
            f"Expected a run with its clients in this process but got one on Flower in {folder}, whose nodes send no "
            "activations"
        )


class _UnlearningRun(FederatedCLI):
    """A CLI whose ``fit`` begins with the weights of a finished run.

    Args:
        args: arguments of the CLI.
        findings: what was measured of the finished run.
        kwargs: keyword arguments of the CLI.
    """

    def __init__(self, *args: Any, findings: Findings, **kwargs: Any) -> None:
        self.findings = findings
        super().__init__(*args, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        if any(each.dtype == torch.float64 for each in self.findings.weights.values()):
            self.model.double()
        self.model.load_state_dict(self.findings.weights)
        self.model.ledger.load_state_dict(self.findings.costs)
        cast(Any, self.trainer).callbacks.append(Comparing(self.findings))
        super()._run_subcommand(subcommand)
