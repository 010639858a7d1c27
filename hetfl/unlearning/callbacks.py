"""What happens at the end of a test: clients are asked for activations, and accuracies are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from hetfl.accounting import Ledger
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedModule
from hetfl.parts import PrunedGroup
from hetfl.trainer import writing
from hetfl.unlearning.asking import telling_channels
from hetfl.unlearning.scoring import class_accuracies, of_class

TABLE = "unlearning"
"""Name of the table of accuracies before and after."""


@dataclass(frozen=True)
class Findings:
    """What was measured of a finished run.

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


class Asking(Callback):
    """Asks the clients of a finished run at the end of its test.

    Args:
        report: gets the findings.
        forget: the class.
        share: of the channels of each group.
    """

    def __init__(self, report: Callable[[Findings], None], forget: int, share: float) -> None:
        self.report, self.forget, self.share = report, forget, share

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the class exists.

        Raises:
            ConfigurationError: samples have no classes, the class is unknown, or levels or clients have tensors of
                their own.
        """
        assert isinstance(pl_module, FederatedModule)
        objective, data = pl_module.objective, pl_module.data
        if objective.single_labels(data.resident.all_test.targets) is None:
            raise ConfigurationError(
                f"Expected a run with one class per sample to unlearn a class but got {type(objective).__name__}"
            )
        if not 0 <= self.forget < data.num_classes:
            raise ConfigurationError(f"Expected --class from 0 to {data.num_classes - 1} but got {self.forget}")
        if copies := pl_module.levels.copies.names:
            raise ConfigurationError(
                f"Expected a run without per_level tensors to unlearn a class but got {', '.join(sorted(copies))}"
            )
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
        self.report(Findings(self.forget, pruned, before, weights, ledger.state_dict()))


class Comparing(Callback):
    """Writes ``unlearning.csv`` and prints the accuracies before and after, at the end of the test.

    Args:
        findings: what was measured of the finished run.
    """

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the accuracy of each class again."""
        assert isinstance(pl_module, FederatedModule)
        before, after = self.findings.before, class_accuracies(pl_module)
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
        forget, pruned = self.findings.forget, self.findings.pruned
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
