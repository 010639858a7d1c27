"""``hetfl unlearn``: prunes the channels that speak for a class, and trains on without the class, as a new run."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hetfl.accounting import Ledger
from hetfl.cli.app import FederatedCLI, FederatedTrainer
from hetfl.cli.callbacks import has_ended
from hetfl.cli.parser import OneLineParser
from hetfl.cli.starting import start
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.parts import PrunedGroup
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.trainer import writing
from hetfl.unlearning import class_accuracies, of_class, telling_channels

TABLE = "unlearning"
"""Name of the table of accuracies before and after."""


@dataclass(frozen=True)
class Found:
    """What the finished run was found to be.

    Attributes:
        forget: the class to unlearn.
        pruned: the channels that speak for it.
        before: by level the correct and all test samples of each class, shape (K, 2).
        weights: of the module.
        costs: state of a ledger that has the cost of asking the clients.
    """

    forget: int
    pruned: list[PrunedGroup]
    before: dict[str, Tensor]
    weights: dict[str, Tensor]
    costs: dict[str, Any]


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
    found = cast(_AskingTrainer, cli.trainer).found
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    changed = unlearning_settings(settings, found, given.rounds, given.name)
    start(["fit", "-c", yaml.safe_dump(changed, sort_keys=False)], cli=partial(_UnlearningRun, found=found))


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="hetfl unlearn",
        description="Prune the channels that speak most for a class, and train on without the class, as a new run.",
    )
    parser.add_argument("run", metavar="RUN", help="The folder of a finished run.")
    parser.add_argument("--class", type=int, default=None, help="Number of the class to unlearn, from 0.")
    parser.add_argument("--share", type=float, default=0.05, help="Share of the channels of each group to prune.")
    parser.add_argument("--rounds", type=int, default=10, help="Rounds of training without the class.")
    parser.add_argument("--name", type=str, default="unlearn", help="Name of the new run.")
    return parser


def unlearning_settings(settings: dict[str, Any], found: Found, rounds: int, name: str) -> dict[str, Any]:
    """Return the settings of a new run: those of the finished run, without the class and the pruned channels.

    Args:
        settings: of the finished run, as in its ``config.yaml``.
        found: the class and the channels.
        rounds: number of rounds.
        name: of the new run.
    """
    settings = deepcopy(settings)
    settings["trainer"]["max_epochs"] = rounds
    settings["final_test"] = True
    loggers = settings["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and logger["class_path"].endswith("RunFolder"):
            logger["init_args"]["name"] = name
    data, model = (settings[part].setdefault("init_args", {}) for part in ("data", "model"))
    data["left_out_classes"] = sorted({*(data.get("left_out_classes") or ()), found.forget})
    pruned = {"groups": [asdict(group) for group in found.pruned], "rule": model.get("parts")}
    model["parts"] = {"class_path": "hetfl.parts.PrunedChannels", "init_args": pruned}
    return settings


class _AskingTrainer(FederatedTrainer):
    """A trainer that tests a finished run, and asks its clients."""

    found: Found

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
        self.callbacks.append(_Asking(self, forget, share))  # type: ignore[attr-defined]
        self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only, verbose=False)


class _Asking(Callback):
    """Asks the clients of a finished run at the end of its test.

    Args:
        asker: gets what was found.
        forget: the class.
        share: of the channels of each group.
    """

    def __init__(self, asker: _AskingTrainer, forget: int, share: float) -> None:
        self.asker, self.forget, self.share = asker, forget, share

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the class exists.

        Raises:
            ConfigurationError: samples have no classes, the class is unknown, or clients have tensors of their own.
        """
        assert isinstance(pl_module, FederatedModule)
        objective, data = pl_module.objective, pl_module.data
        if objective.single_labels(data.resident.all_test.targets) is None:
            raise ConfigurationError(
                f"Expected a run with one class per sample to unlearn a class but got {type(objective).__name__}"
            )
        if not 0 <= self.forget < data.num_classes:
            raise ConfigurationError(f"Expected --class from 0 to {data.num_classes - 1} but got {self.forget}")
        if pl_module.personal.names:
            raise ConfigurationError(
                f"Expected a run without personal tensors, which a new run does not have, but got "
                f"{', '.join(sorted(pl_module.personal.names))}"
            )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the accuracy of each class, and ask the clients; only the questions are in the costs."""
        assert isinstance(pl_module, FederatedModule)
        before, ledger = class_accuracies(pl_module), pl_module.ledger
        ledger.load_state_dict(Ledger(pl_module.fleet).state_dict())
        with torch.inference_mode(False):
            pruned = telling_channels(pl_module, self.forget, self.share)
        weights = {name: each.detach().cpu().clone() for name, each in pl_module.state_dict().items()}
        self.asker.found = Found(self.forget, pruned, before, weights, ledger.state_dict())


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
        found: what was found of the finished run.
        kwargs: keyword arguments of the CLI.
    """

    def __init__(self, *args: Any, found: Found, **kwargs: Any) -> None:
        self.found = found
        super().__init__(*args, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        if any(each.dtype == torch.float64 for each in self.found.weights.values()):
            self.model.double()
        self.model.load_state_dict(self.found.weights)
        self.model.ledger.load_state_dict(self.found.costs)
        cast(Any, self.trainer).callbacks.append(_Comparing(self.found))
        super()._run_subcommand(subcommand)


class _Comparing(Callback):
    """Writes ``unlearning.csv`` and prints the accuracies before and after, at the end of the test.

    Args:
        found: what was found of the finished run.
    """

    def __init__(self, found: Found) -> None:
        self.found = found

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the accuracy of each class again."""
        assert isinstance(pl_module, FederatedModule)
        before, after = self.found.before, class_accuracies(pl_module)
        columns = ("level", "class", "samples", "before", "after")
        rows = [
            (level, k, int(count), *(float(each[level][k, 0] / count) if count else None for each in (before, after)))
            for level in after
            for k, count in enumerate(after[level][:, 1].tolist())
        ]
        for folder in writing.run_folders(trainer.loggers):
            folder.write_table(TABLE, columns, rows)
        if trainer.is_global_zero:
            self._print(before, after)

    def _print(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        forget, pruned = self.found.forget, self.found.pruned
        chance = 1 / len(next(iter(after.values())))
        for level in after:
            (one, others), (one_now, others_now) = (of_class(each[level], forget) for each in (before, after))
            print(
                f"{f'level {level}':<18}class {forget}: {_percent(one)} before, {_percent(one_now)} after (chance "
                f"{_percent(chance)}); other classes: {_percent(others)} before, {_percent(others_now)} after"
            )
        channels = sum(len(group.channels) for group in pruned), sum(group.size for group in pruned)
        print(f"{'pruned':<18}{channels[0]} of {channels[1]} channels in {len(pruned)} groups")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
