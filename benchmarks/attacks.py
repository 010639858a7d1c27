"""Accuracies of aggregation rules under attacks: a table, and a figure over the share of hostile clients.

All settings are fixed here before a run: the rules have their defaults, the attacks what ``ATTACKS`` says.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning import Trainer, seed_everything
from torch.optim import SGD

from hetfl import HeteroFL
from hetfl.aggregators import (
    Aggregator,
    ClippedMean,
    CoordinateMedian,
    FLTrust,
    HolderMean,
    MultiKrum,
    TrimmedMean,
)
from hetfl.analysis.theme import group_styles, plain
from hetfl.attacks import ALittleIsEnough, Gaussian, InnerProduct, LabelFlip, Scaling, SignFlip
from hetfl.data import MNIST, ClientTransform, Digits, FederatedDataModule
from hetfl.hooks import Hook
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.selection import Uniform

matplotlib.use("Agg")

RULES: dict[str, Callable[[], Aggregator]] = {
    "mean": HolderMean,
    "median": CoordinateMedian,
    "trimmed mean": TrimmedMean,
    "clipped mean": ClippedMean,
    "multi-Krum": MultiKrum,
    "FLTrust": lambda: FLTrust(epochs=1),
}


@dataclass(frozen=True)
class Attack:
    """What an attack changes in a run, for a share of hostile clients."""

    hook: Callable[[float], Hook] | None = None
    transform: Callable[[float], ClientTransform] | None = None
    around: Callable[[Aggregator, float], Aggregator] | None = None


ATTACKS: dict[str, Attack] = {
    "none": Attack(),
    "sign flip": Attack(hook=lambda share: SignFlip(5.0, share=share)),
    "scaling": Attack(hook=lambda share: Scaling(10.0, share=share)),
    "Gaussian": Attack(hook=lambda share: Gaussian(10.0, share=share)),
    "a little is enough": Attack(around=lambda rule, share: ALittleIsEnough(rule, share=share)),
    "inner product": Attack(around=lambda rule, share: InnerProduct(rule, 5.0, share=share)),
    "label flip": Attack(transform=lambda share: LabelFlip(share=share)),
}


@dataclass(frozen=True)
class Setting:
    """The federation: data, clients, cohort, rounds, channels, local epochs."""

    data: str
    root: str
    clients: int
    cohort: int
    rounds: int
    hidden: tuple[int, ...]
    epochs: int
    lr: float

    def made(self, seed: int, transform: ClientTransform | None) -> FederatedDataModule:
        """Return the data, of which the server has a share for FLTrust."""
        shared: dict[str, Any] = {"num_clients": self.clients, "server_fraction": 0.07, "seed": seed}
        if self.data == "digits":
            return Digits(client_transform=transform, **shared)
        return MNIST(
            root=self.root, client_transform=transform, **{**shared, "server_fraction": 0.01, "val_fraction": UNUSED}
        )


TINY = Setting("digits", "", clients=10, cohort=10, rounds=12, hidden=(8, 16), epochs=1, lr=0.1)
FULL = Setting("mnist", "data", clients=50, cohort=20, rounds=30, hidden=(16, 32, 64), epochs=1, lr=0.05)
UNUSED = 0.8
"""Share of MNIST's training data that is set aside for validation, which does not take place: runs are short."""


def accuracy(setting: Setting, rule: str, attack: str, share: float, seed: int) -> float:
    """Return the test accuracy of the global model after a run, in percent."""
    seed_everything(seed, verbose=False)
    changes, aggregator = ATTACKS[attack], RULES[rule]()
    module = HeteroFL(
        lambda *, width=1.0: ConvNet(hidden=setting.hidden, width=width),
        selection=Uniform(setting.cohort),
        local=LocalTraining(setting.epochs, 10, 1.0, lambda p: SGD(p, setting.lr, 0.9, weight_decay=5e-4)),
        aggregator=changes.around(aggregator, share) if changes.around else aggregator,
        hooks=[changes.hook(share)] if changes.hook else None,
        seed=seed,
    )
    data = setting.made(seed, changes.transform(share) if changes.transform else None)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=setting.rounds, limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return 100.0 * float(trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"])


def table(
    setting: Setting, share: float, seeds: Sequence[int], rules: Sequence[str], attacks: Sequence[str], file: Path
) -> None:
    """Write and print the mean accuracy of each rule under each attack."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(["rule", *attacks])
        for rule in rules:
            scores = [
                statistics.mean(accuracy(setting, rule, attack, share, seed) for seed in seeds) for attack in attacks
            ]
            rows.writerow([rule, *(f"{score:.1f}" for score in scores)])
            print(f"{rule:14}", *(f"{score:6.1f}" for score in scores), flush=True)


def figure(setting: Setting, attack: str, shares: Sequence[float], seeds: Sequence[int], file: Path) -> None:
    """Draw the accuracy of every rule over the share of hostile clients."""
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(6, 4))
    for rule, style in group_styles(list(RULES)).items():
        scores = [statistics.mean(accuracy(setting, rule, attack, share, seed) for seed in seeds) for share in shares]
        axes.plot([100 * share for share in shares], scores, label=rule, **style.line(len(shares)))
    axes.set(xlabel="hostile clients (%)", ylabel="test accuracy (%)", title=attack)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    plain(axes)
    drawing.savefig(file, dpi=120, bbox_inches="tight")


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", help="folder of MNIST; without it, a small run on Digits")
    options.add_argument("--share", type=float, default=0.2, help="share of hostile clients (default: %(default)s)")
    options.add_argument("--seeds", type=int, default=1, help="number of seeds (default: %(default)s)")
    options.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES), help="rules (default: all)")
    options.add_argument("--attacks", nargs="*", default=list(ATTACKS), choices=list(ATTACKS), help="(default: all)")
    options.add_argument("--shares", type=float, nargs="*", help="draw a figure over these shares, of a sign flip")
    options.add_argument("--out", default=".", help="folder of the results (default: here)")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    setting = TINY if given.root is None else Setting(**{**vars(FULL), "root": given.root})
    out, seeds = Path(given.out), range(given.seeds)
    if given.shares:
        figure(setting, "sign flip", given.shares, seeds, out / "accuracy_over_hostile.png")
    else:
        print(" " * 14, *(f"{attack[:6]:>6}" for attack in given.attacks), flush=True)
        table(setting, given.share, seeds, given.rules, given.attacks, out / "attacks.csv")


if __name__ == "__main__":
    main()
