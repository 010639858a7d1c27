"""The table of the γ-FedHT paper in kind, and what budgets and logarithmic codes add, at equal uploaded bytes.

``python benchmarks/gamma_fedht.py --root DATA --out rows.csv`` trains, for every cell (model, labels per client,
schedule, participation) and every seed: γ-FedHT with the paper's law and a λ_0 calibrated from a density, top-k at its
mean density, a constant threshold, and, at the bytes of γ-FedHT, thresholds that a budget steers, top-k in proportion
to the learning rate, and coded updates. It appends a row per run to the file, skips rows that are there, and prints the
table. DATA has MNIST and CIFAR-10 in torchvision's layout (CIFAR-10 as JPEG in class folders, ``cifar10-jpeg``).
"""

from __future__ import annotations

import argparse
import csv
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, MultiStepLR
from torchvision.datasets import MNIST, ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from hetfl import FedAvg, Level
from hetfl.aggregators import SampleMean
from hetfl.compression import Chain, Compressor, ErrorFeedback, GammaFedHT, HardThreshold, Identity, LogQuantizer, TopK
from hetfl.compression.message_size import affordable_count
from hetfl.data import PathologicalLabels, TensorData
from hetfl.local import LocalTraining, Stacked
from hetfl.models import MLP, ConvNet
from hetfl.selection import Uniform

FIELDS = ["model", "labels", "schedule", "clients", "method", "seed", "accuracy", "up_bytes", "density"]


class Cell(NamedTuple):
    """What methods are compared on.

    Attributes:
        model: ``logistic`` on MNIST, ``small_cnn`` on MNIST at 14 x 14, or ``cnn`` on CIFAR-10 at 16 x 16.
        labels: per client, #C.
        schedule: of the clients' learning rate, ``cosine`` to a hundredth or ``step``, a tenth at 1/2 and 3/4.
        clients: of whom ten take part in a round; with ten, all take part.
    """

    model: str
    labels: int
    schedule: str
    clients: int


class Task(NamedTuple):
    """The settings of a model."""

    net: Callable[..., nn.Module]
    rounds: int
    lr: float
    momentum: float
    batch: int
    samples: int  # of a client
    density: float


class SmallCNN(nn.Module):
    """Two convolutions with max pools, and a linear layer on what is left of 14 x 14 pixels: 7 690 parameters.

    Without a global average pool it learns fast from clients of two labels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Linear(32 * 9, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, 10) of images (N, 1, 14, 14)."""
        logits: Tensor = self.classifier(self.convolutions(images).flatten(1))
        return logits


COHORT = 10
TASKS = {
    "logistic": Task(partial(MLP, 784, 10, (), "none"), 100, 0.05, 0.0, 20, 200, 0.02),
    "small_cnn": Task(SmallCNN, 60, 0.1, 0.9, 50, 500, 0.003),
    "cnn": Task(partial(ConvNet, 3, 10, (16, 32, 64), "none"), 50, 0.1, 0.9, 50, 500, 0.003),
}
CELLS = [
    *(Cell("logistic", labels, "cosine", 100) for labels in (2, 3, 5)),
    Cell("logistic", 3, "step", 100),
    Cell("logistic", 3, "cosine", 10),
    Cell("small_cnn", 2, "cosine", 10),
    *(Cell("cnn", labels, "cosine", 20) for labels in (2, 3, 5)),
    Cell("cnn", 3, "step", 20),
]


@cache
def samples(model: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return shuffled training inputs and targets, then those of the test: MNIST, or a fifth of CIFAR-10 at 16 x 16."""
    if model != "cnn":
        sets = [MNIST(root, train=train) for train in (True, False)]
        grey = [(data.data[:, None].float() / 255 - 0.1307) / 0.3081 for data in sets]
        if model == "small_cnn":
            grey = [functional.avg_pool2d(images, 2) for images in grey]
        return grey[0], sets[0].targets, grey[1], sets[1].targets
    parts = []
    for name in ("train", "test"):
        folder = ImageFolder(f"{root}/cifar10-jpeg/{name}")
        chosen = range(0, len(folder), 5)
        images = torch.stack([pil_to_tensor(folder[position][0]) for position in chosen]).float() / 255
        parts += [functional.avg_pool2d((images - 0.45) / 0.25, 2), torch.tensor([folder.targets[n] for n in chosen])]
    order = torch.randperm(len(parts[0]), generator=torch.Generator().manual_seed(0))
    return parts[0][order], parts[1][order], parts[2], parts[3]


def schedule_of(cell: Cell, optimizer: Any) -> Any:
    """Return the schedule over rounds."""
    task = TASKS[cell.model]
    if cell.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0)
    if cell.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=task.rounds, eta_min=task.lr / 100)
    return MultiStepLR(optimizer, milestones=[task.rounds // 2, 3 * task.rounds // 4], gamma=0.1)


def train(cell: Cell, compressor: Compressor, seed: int, root: str, rounds: int | None = None) -> tuple[float, ...]:
    """Return the test accuracy in percent, the uploaded bytes, and the mean density of a run."""
    seed_everything(seed, verbose=False)
    task = TASKS[cell.model]
    inputs, targets, test_inputs, test_targets = samples(cell.model, root)
    count = cell.clients * task.samples
    data = TensorData(
        train_inputs=inputs[:count], train_targets=targets[:count], test_inputs=test_inputs, test_targets=test_targets,
        num_clients=cell.clients, partitioner=PathologicalLabels(cell.labels), seed=seed,
    )  # fmt: skip
    optimizer = partial(SGD, lr=task.lr, momentum=task.momentum)
    local = LocalTraining(1, task.batch, optimizer=optimizer, scheduler=partial(schedule_of, cell))
    module = FedAvg(
        task.net, {"a": Level("a")}, selection=Uniform(COHORT), local=local, aggregator=SampleMean(),
        uplink=ErrorFeedback(compressor), executor=Stacked(clients=COHORT), seed=seed,
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=rounds or task.rounds, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    total = module.ledger.total
    accuracy = trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]
    return 100 * accuracy, float(total.update_bytes), total.sent / total.entries


def coded_density(cell: Cell, size: int, num_bytes: float, bits: int) -> float:
    """Return the density at which top-k with codes takes as many bytes over the run."""
    messages = TASKS[cell.model].rounds * COHORT
    return affordable_count(size, num_bytes / messages, bits / 8) / size


def methods(cell: Cell, alpha: float, size: int, reference: tuple[float, ...]) -> dict[str, Callable[[], Compressor]]:
    """Return compressors by name; those behind the first are given the bytes or the density of γ-FedHT's run."""
    density, (_, num_bytes, mean) = TASKS[cell.model].density, reference
    coded = coded_density(cell, size, num_bytes, 3)
    return {
        "FedAvg": Identity,
        "top-k": lambda: TopK(mean),
        "HT": lambda: HardThreshold(density=density),
        "top-k by lr": lambda: TopK(mean, schedule="lr"),
        "γ-FedHT, budget": lambda: GammaFedHT(budget=num_bytes, alpha=alpha, law="paper"),
        "HT, budget": lambda: HardThreshold(budget=num_bytes),
        "top-k, 3 bit": lambda: Chain(TopK(coded), LogQuantizer(3)),
        "top-k by lr, 3 bit": lambda: Chain(TopK(coded, schedule="lr"), LogQuantizer(3)),
        "HT, budget, 3 bit": lambda: Chain(HardThreshold(budget=num_bytes), LogQuantizer(3)),
    }


def rows_of(path: Path) -> dict[tuple[str, ...], tuple[float, ...]]:
    """Return the results that a file has, by cell, method and seed."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {
            tuple(row[name] for name in FIELDS[:6]): tuple(float(row[name]) for name in FIELDS[6:])
            for row in csv.DictReader(file)
        }


def run(cell: Cell, method: str, make: Callable[[], Compressor], seed: int, root: str, path: Path) -> tuple[float, ...]:
    """Return a run's result, from the file or by training."""
    key = (*map(str, cell), method, str(seed))
    if key in (rows := rows_of(path)):
        return rows[key]
    result = train(cell, make(), seed, root)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([FIELDS] if fresh else [])
        writer.writerow([*key, *result])
    print(*key, *(f"{number:.6g}" for number in result), flush=True)
    return result


def tuned_alpha(cell: Cell, root: str, path: Path, alphas: tuple[float, ...]) -> float:
    """Return the α at which seed 0 of γ-FedHT is best."""
    found = {
        alpha: run(cell, f"γ-FedHT, α = {alpha}", partial(paper, cell, alpha), 0, root, path)[0] for alpha in alphas
    }
    return max(found, key=lambda alpha: found[alpha])


def paper(cell: Cell, alpha: float) -> Compressor:
    """Return γ-FedHT with its law and a calibrated λ_0."""
    return GammaFedHT(density=TASKS[cell.model].density, alpha=alpha, law="paper")


def table(path: Path) -> Iterator[str]:
    """Yield a Markdown table: mean accuracy over seeds (range), and bytes, by cell and method."""
    frame = pd.read_csv(path)
    frame = frame[~frame.method.str.contains("α =")]
    for cell, rows in frame.groupby(["model", "labels", "schedule", "clients"], sort=False):
        yield f"\n{cell[0]}, #C = {cell[1]}, {cell[2]}, 10 of {cell[3]} clients a round\n"
        yield "| method | test accuracy | kB uploaded | density |"
        yield "|---|---|---|---|"
        for method, of_method in rows.groupby("method", sort=False):
            score = of_method.accuracy
            yield (
                f"| {method} | {score.mean():.2f} ({score.min():.1f}-{score.max():.1f}) "
                f"| {of_method.up_bytes.mean() / 1e3:.0f} | {100 * of_method.density.mean():.2f} % |"
            )


def densities(root: str) -> Iterator[str]:
    """Yield by how much a calibrated threshold misses its density at a constant learning rate."""
    for clients in (10, 100):
        cell = Cell("logistic", 3, "constant", clients)
        for density in (0.003, 0.02, 0.1):
            _, _, sent = train(cell, HardThreshold(density=density), 0, root, rounds=60)
            yield f"10 of {clients} clients, density {density}: {sent / density:.2f} times as much was sent"


def main() -> None:
    """Train what is missing, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", required=True, help="folder of the data")
    options.add_argument("--out", default="gamma_fedht.csv", help="file of the results (default: %(default)s)")
    options.add_argument("--models", nargs="+", default=list(TASKS), choices=list(TASKS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--methods", nargs="+", help="some of them beside γ-FedHT (default: all)")
    options.add_argument("--alphas", nargs="+", type=float, default=[0.25, 0.5, 1.0], help="tried on seed 0")
    options.add_argument("--densities", action="store_true", help="only how well a calibration meets a density")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    path = Path(given.out)
    if given.densities:
        for line in densities(given.root):
            print(line, flush=True)
        return
    for model in given.models:
        cells = [cell for cell in CELLS if cell.model == model]
        alpha = tuned_alpha(cells[0], given.root, path, tuple(given.alphas))
        print(f"{model}: α = {alpha}")
        size = sum(parameter.numel() for parameter in TASKS[model].net().parameters())
        for seed in given.seeds:
            for cell in cells:
                reference = run(cell, "γ-FedHT", partial(paper, cell, alpha), seed, given.root, path)
                for method, make in methods(cell, alpha, size, reference).items():
                    if given.methods and method not in given.methods:
                        continue
                    run(cell, method, make, seed, given.root, path)
    print(*table(path), sep="\n")


if __name__ == "__main__":
    main()
