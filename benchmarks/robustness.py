"""Clean accuracy and accuracy under attack of robust Split-Mix on Digits, over the mixture of its two branches.

``python benchmarks/robustness.py --out curve.png`` trains base nets with dual norms, half of every batch perturbed by
PGD, and plain Split-Mix beside it. It prints both accuracies on the test set for each mixture and level, and draws
those of the largest level. The attack knows the mixture. Radius and steps are in units of normalised pixels, whose
standard deviation is 1.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from functools import partial
from typing import Any

import pandas as pd
import torch
from lightning import Trainer, seed_everything
from torch.optim import SGD

from hetfl import Level
from hetfl.analysis.figures import new_figure
from hetfl.data import Digits, Dirichlet
from hetfl.local import PGD, LocalTraining
from hetfl.methods import SplitMixRobust
from hetfl.models import SplitConvNet
from hetfl.selection import Uniform

LEVELS = {"a": Level("a"), "b": Level("b", 0.5), "c": Level("c", 0.25)}
MIXTURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def trained(adversarial: float, rounds: int, radius: float) -> tuple[Any, Digits]:
    """Return a module after its training, and its data."""
    seed_everything(0, verbose=False)
    module = SplitMixRobust(
        partial(SplitConvNet, hidden=(64, 128), bases=4, norm="dual"),
        LEVELS,
        adversarial=adversarial,
        attack=PGD(radius, 7, radius / 4),
        selection=Uniform(5),
        local=LocalTraining(batch_size=20, optimizer=partial(SGD, lr=0.1, momentum=0.9)),
    )
    data = Digits(num_clients=10, partitioner=Dirichlet(1.0))
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "limit_val_batches": 0,
    }
    trainer = Trainer(max_epochs=rounds, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data)
    return module, data


def measured(module: Any, data: Digits) -> pd.DataFrame:
    """Return both accuracies of each level at each mixture."""
    batches = [batch for loader in data.test_dataloader() for batch in loader]
    inputs = data.transform.eval(torch.cat([batch[0] for batch in batches]))
    targets, rows = torch.cat([batch[1] for batch in batches]), []
    for level in LEVELS:
        net = module.submodel(level)
        for mixture in MIXTURES:
            rows.append((level, mixture, *module.robustness(net, inputs, targets, mixture)))
    return pd.DataFrame(rows, columns=["level", "mixture", "clean", "attacked"])


def main() -> None:
    """Train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--radius", type=float, default=0.3)
    parser.add_argument("--out", help="file of the figure")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    plain = measured(*trained(0.0, given.rounds, given.radius)).query("mixture == 0")
    robust = measured(*trained(0.5, given.rounds, given.radius))
    print(pd.concat({"plain": plain, "robust": robust}, names=["training"]).droplevel(1).to_string(float_format="%.3f"))
    if given.out:
        figure, axes = new_figure("Accuracy over the mixture", "Clean accuracy against accuracy under attack (PGD).")
        curve = robust[robust["level"] == "a"]
        for kind in ("clean", "attacked"):
            axes[0, 0].plot(curve["mixture"], curve[kind], marker="o", label=kind)
        axes[0, 0].set(xlabel="weight of the noisy branch", ylabel="test accuracy")
        axes[0, 0].legend()
        figure.savefig(given.out, dpi=150)


if __name__ == "__main__":
    main()
