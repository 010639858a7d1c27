"""Federated training of sub-models compared with central training of the same net.

``python benchmarks/central.py`` trains a regression (scikit-learn's diabetes) and a text classifier (on generated
texts), by HeteroFL on the clients of the data, and by one client with all data for the same number of passes. It prints
the test scores of the global models, and their ratio.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning import Trainer
from torch import nn
from torch.optim import SGD

from hetfl import FedAvg, FederatedModule, HeteroFL, Level
from hetfl.data import IID, Diabetes, FederatedDataModule, TextTable
from hetfl.local import LocalTraining
from hetfl.models import MLP, Transformer
from hetfl.selection import Uniform

WORDS = {
    "sport": ["ball", "team", "game", "goal", "coach", "score"],
    "food": ["bread", "soup", "salt", "oven", "cheese", "fruit"],
    "tech": ["code", "chip", "cable", "robot", "server", "phone"],
}
COMMON = ["the", "a", "of", "and", "to", "is", "it", "with"]
LEVELS = {"a": Level("a"), "b": Level("b", 0.5)}


def write_texts(path: Path) -> None:
    """Write 1500 texts of 10 users with 8 to 16 words each, of which about a fifth are words of the topic."""
    drawn, rows = random.Random(0), []
    for _ in range(1500):
        topic = drawn.choice(list(WORDS))
        kinds = [WORDS[topic] if drawn.random() < 0.2 else COMMON for _ in range(drawn.randint(8, 16))]
        rows.append((" ".join(map(drawn.choice, kinds)), topic, f"user{drawn.randrange(10)}"))
    pd.DataFrame(rows, columns=["text", "topic", "user"]).to_csv(path, index=False)


def score(module: FederatedModule, data: FederatedDataModule, rounds: int) -> float:
    """Return the headline on the test set after some rounds."""
    trainer = Trainer(
        max_epochs=rounds, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return trainer.test(module, datamodule=data, verbose=False)[0][module.objective.headline.column("test")]


def compare(
    name: str,
    data: Callable[..., FederatedDataModule],
    net: Callable[..., nn.Module],
    rounds: int,
    settings: dict[str, Any],
) -> None:
    """Print both scores of a task."""
    local = LocalTraining(2, 10, 1.0, partial(SGD, **settings))
    divided, together = data(), data(num_clients=1, partitioner=IID())
    divided.setup()
    rules = divided.objective.owns_labels
    federated = HeteroFL(net, LEVELS, label_rules=rules, selection=Uniform(10), local=local)
    central = FedAvg(net, {"a": Level("a")}, selection=Uniform(1), local=local)
    reached, best = score(federated, divided, rounds), score(central, together, rounds)
    headline, ratio = federated.objective.headline, reached / best
    print(f"{name}: {headline.name} {reached:.4f} by 10 clients, {best:.4f} by one with all data, ratio {ratio:.3f}")


def main() -> None:
    """Print the comparison."""
    torch.set_num_threads(1)
    regression = partial(MLP, in_channels=10, num_classes=1)
    compare(
        "diabetes, 20 rounds", partial(Diabetes, num_clients=10), regression, 20,
        {"lr": 0.003, "momentum": 0.9, "weight_decay": 0.01},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.csv")
        write_texts(path)

        def texts(**changes: Any) -> TextTable:
            user = None if changes else "user"
            return TextTable(
                path=str(path), text="text", target="topic", client=user, vocabulary=40, length=16, **changes
            )

        net = partial(Transformer, 40, 3, channels=32, heads=4, feed_forward=64, layers=1, padding=0)
        compare("texts, 30 rounds", texts, net, 30, {"lr": 0.02, "momentum": 0.9})


if __name__ == "__main__":
    main()
