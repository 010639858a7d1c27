"""A small federation for every objective, with data that can be learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from hetfl import FederatedModule, HeteroFL
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import IID, FederatedDataModule, TensorData
from hetfl.local import LocalTraining, Sequential
from hetfl.models import MLP, Transformer
from hetfl.objectives import Classification, LanguageModelling, MultiLabel, Objective, Regression
from hetfl.selection import Uniform
from tests.conftest import small_levels

CLIENTS, FEATURES, TOKENS = 5, 6, 12


@dataclass(frozen=True)
class Case:
    """A federation for one objective.

    Attributes:
        objective: makes the objective of the data.
        samples: returns inputs and targets for a number of samples and a seed.
        net: builds the net of a level.
        changes: arguments of the module.
    """

    objective: Callable[[], Objective]
    samples: Callable[[int, int], tuple[Tensor, Tensor]]
    net: Callable[..., nn.Module]
    changes: dict[str, Any]

    def data(self) -> FederatedDataModule:
        """Return 120 training and 40 test samples of some clients."""
        (train, train_targets), (test, test_targets) = self.samples(120, 0), self.samples(40, 1)
        return TensorData(
            train_inputs=train,
            train_targets=train_targets,
            test_inputs=test,
            test_targets=test_targets,
            num_classes=TOKENS if isinstance(self.objective(), LanguageModelling) else None,
            num_clients=CLIENTS,
            partitioner=IID(),
            objective=self.objective(),
            val_fraction=0.2,
        )

    def module(self, **changes: Any) -> FederatedModule:
        """Return HeteroFL with two widths, momentum, top-k and error feedback."""
        local = LocalTraining(2, 10, 1.0, lambda p: SGD(p, lr=0.05, momentum=0.9))
        arguments: dict[str, Any] = {
            "levels": small_levels(1.0, 0.5),
            "selection": Uniform(4),
            "uplink": ErrorFeedback(TopK(0.3)),
            "local": local,
            "executor": Sequential(),
        }
        return HeteroFL(self.net, **{**arguments, **self.changes, **changes})


def features(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs, and as targets three numbers that depend on them."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=random)
    weights = torch.randn(FEATURES, 3, generator=torch.Generator().manual_seed(7))
    return inputs, inputs @ weights


def texts(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return token sequences and the following tokens; most tokens are three more than the token before."""
    random = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(2, TOKENS, (count,), generator=random)]
    for _ in range(6):
        jump = (torch.rand(count, generator=random) < 0.1).long()
        tokens.append((tokens[-1] + 3 + jump) % TOKENS)
    joined = torch.stack(tokens, 1)
    return joined[:, :-1], joined[:, 1:]


def classes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features, and as targets the position of the largest of three numbers that depend on them."""
    inputs, numbers = features(count, seed)
    return inputs, numbers.argmax(1)


def labels(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features, and as targets which of the three numbers are positive."""
    inputs, numbers = features(count, seed)
    return inputs, numbers > 0


def measured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features, and as targets two of the numbers, shifted to about 50."""
    inputs, numbers = features(count, seed)
    return inputs, 50 + 10 * numbers[:, :2]


def same_tokens(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return sequences as inputs and as targets, for masked language modelling."""
    tokens = texts(count, seed)[0]
    return tokens, tokens


NET = partial(Transformer, channels=16, heads=2, feed_forward=32, layers=1, pooling="none", num_classes=TOKENS)

CASES: dict[str, Case] = {
    "weighted classes": Case(
        lambda: Classification(class_weights=[1.0, 2.0, 0.5], top_k=2, headline="macro_f1"),
        classes,
        partial(MLP, in_channels=FEATURES, num_classes=3, hidden=(16,)),
        {},
    ),
    "labels": Case(MultiLabel, labels, partial(MLP, in_channels=FEATURES, num_classes=3, hidden=(16,)), {}),
    "numbers": Case(
        lambda: Regression(offset=50.0, scale=20.0),
        measured,
        partial(MLP, in_channels=FEATURES, num_classes=2, hidden=(16,)),
        {"label_rules": False},
    ),
    "next token": Case(LanguageModelling, texts, partial(NET, TOKENS), {}),
    "masked tokens": Case(
        lambda: LanguageModelling(masked=0.3, mask_token=TOKENS),
        same_tokens,
        partial(NET, TOKENS + 1, causal=False),
        {},
    ),
}
