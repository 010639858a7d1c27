"""What reputations say of noisy clients, and whether a mean weighted by them is better, on MNIST or CIFAR-10.

``python benchmarks/value.py --root DATA`` trains ten clients, of which eight have random labels among theirs (shares
0.9, 0.9, 0.45 three times, 0.2 three times, 0, 0, as in the published code of a pruning-based framework), with FedAvg
and with ``ValueMean`` at several trade-offs, and prints the reputations at the end, their rank correlation with the
noise, the ratio of a clean client to the noisiest, and the test accuracies. DATA has MNIST in torchvision's layout;
with ``--cifar10`` it has CIFAR-10 as image files, one folder per class in ``train`` and ``test``.

That code divides the samples at random, and so does this file; ``--beta 0.5`` is a Dirichlet partition. The cosines
follow the noise while the mean update is long. Near a joint optimum it is short, the cosine of every client tends to
1/sqrt(10) by its own share of the mean, and reputations become equal again: compare ``--rounds 12`` and ``60``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from lightning import Trainer, seed_everything
from scipy.stats import spearmanr
from torch.optim import SGD

from hetfl import FedAvg, Level
from hetfl.aggregators import Aggregator, SampleMean, ValueMean
from hetfl.data import IID, MNIST, Dirichlet, FederatedDataModule, ImageFolder, ImageTransform, LabelNoise
from hetfl.local import LocalTraining
from hetfl.models import ConvNet
from hetfl.piece import Piece
from hetfl.selection import Uniform
from hetfl.value import GradientCosine, Reputation

AUGMENTED = ImageTransform(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), padding=4, flip=True)
NOISE = [0.9, 0.9, 0.45, 0.45, 0.45, 0.2, 0.2, 0.2, 0.0, 0.0]


class Watch(Piece):
    """Prints the norm of the mean update and the cosines every some rounds.

    Args:
        every: rounds between two lines.
    """

    def __init__(self, every: int) -> None:
        self.every, self.cosine = every, GradientCosine(leave_out=False)

    def members(self) -> dict[str, Piece]:
        """Return the measure of the cosines."""
        return {"cosine": self.cosine}

    def end_round(self, round: int) -> None:
        """Print the numbers of the round."""
        if (round + 1) % self.every == 0:
            total_D, _ = self.cosine.cohorts[0].sums(dict.fromkeys(range(len(NOISE)), 1 / len(NOISE)))
            cosines = " ".join(f"{value:.2f}" for _, value in sorted(self.cosine.of_round().items()))
            print(
                f"round {round + 1}: norm of the mean update {float(total_D.norm()):.2f}, cosines {cosines}", flush=True
            )


def trained(aggregator: Aggregator, given: argparse.Namespace, seed: int) -> float:
    """Train with an aggregator, and return the test accuracy of the global model."""
    seed_everything(seed, verbose=False)
    # LabelNoise draws from all classes, so that a tenth of its labels are right by chance.
    noise = LabelNoise([share * 10 / 9 for share in NOISE])
    settings: dict[str, Any] = {
        "root": given.root,
        "num_clients": len(NOISE),
        "partitioner": IID() if given.beta is None else Dirichlet(given.beta),
        "client_transform": noise,
        "server_fraction": given.aside,
        "seed": seed,
    }
    data: FederatedDataModule = ImageFolder(transform=AUGMENTED, **settings) if given.cifar10 else MNIST(**settings)
    module = FedAvg(
        lambda width=1.0: ConvNet(3 if given.cifar10 else 1, width=width, hidden=given.hidden),
        {"a": Level("a")},
        selection=Uniform(len(NOISE)),
        local=LocalTraining(1, 20, 1.0, lambda p: SGD(p, 0.02, 0.9)),
        aggregator=aggregator,
        seed=seed,
    )
    if given.every:
        module.watch = Watch(given.every)  # type: ignore[assignment]
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=given.rounds, accelerator="cpu", enable_checkpointing=False, limit_val_batches=0, **quiet
    )
    trainer.fit(module, datamodule=data)
    return float(trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument("--cifar10", action="store_true", help="CIFAR-10 in place of MNIST")
    parser.add_argument("--hidden", type=int, nargs="+", default=[10, 20, 40], help="channels of the net")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--beta", type=float, help="of a Dirichlet partition; without it, equal shares at random")
    parser.add_argument("--aside", type=float, default=0.9, help="share of the training data that is not used")
    parser.add_argument("--every", type=int, default=0, help="print the cosines every so many rounds; 0: never")
    parser.add_argument("--tradeoffs", type=float, nargs="+", default=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("seed  trade-off  accuracy  clean:noisiest  Spearman  reputations", flush=True)
    for seed in given.seeds:
        print(f"{seed:4d}     FedAvg    {trained(SampleMean(), given, seed):.4f}", flush=True)
        for tradeoff in given.tradeoffs:
            mean = ValueMean(Reputation(tradeoff))
            accuracy = trained(mean, given, seed)
            values = [mean.values[client] for client in range(len(NOISE))]
            ratio = sum(values[-2:]) / sum(values[:2])
            rank, shown = spearmanr(values, NOISE).statistic, " ".join(f"{value:.4f}" for value in values)
            print(f"{seed:4d}  {tradeoff:9.1f}    {accuracy:.4f}  {ratio:14.2f}  {rank:8.2f}  {shown}", flush=True)


if __name__ == "__main__":
    main()
