"""NaN is reported in the round in which it arises, with the hook, aggregator or optimizer that made it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import SGD

from hetfl import ConfigurationError
from hetfl.aggregators import HolderMean
from hetfl.hooks import DeltaContext, Hook
from hetfl.local import LocalTraining
from hetfl.updates import Update
from tests.conftest import small_module

Fit = Callable[..., Trainer]
FAULTY = 1
"""The round in which values become NaN."""


class Faulty:
    """Has the factor of the round: 1, and NaN in the faulty round."""

    factor = 1.0

    def begin_round(self, round: int, lr: float) -> None:
        self.factor = torch.nan if round == FAULTY else 1.0


class OnDelta(Faulty, Hook):
    def on_delta(self, p_D: Tensor, ctx: DeltaContext) -> Tensor:
        return p_D * (torch.nan if ctx.round == FAULTY else 1.0)


class OnUpdate(Faulty, Hook):
    def on_update(self, update: Update, index: Any, report: Any) -> Update:
        return update.scaled(self.factor)


class OnStep(Faulty, Hook):
    def on_step(self, model: int, delta: dict[str, Tensor], holders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**delta, "classifier.bias": delta["classifier.bias"] * self.factor}


class Mean(Faulty, HolderMean):
    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        steps, holders = super().compute()
        return {**steps, "classifier.bias": steps["classifier.bias"] * self.factor}, holders


class Optimizer(SGD):
    def step(self, closure: Any = None) -> Any:
        self.steps = 1 + getattr(self, "steps", -1)
        if self.steps == FAULTY:
            self.param_groups[0]["params"][-1].data.fill_(torch.inf)
        return super().step(closure)


CASES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "on_delta": (
        lambda: {"hooks": [OnStep(), OnDelta()]},
        r"round 2 but all 4 were refused \(the last one: Expected finite values from OnDelta.on_delta but got NaN",
    ),
    "on_update": (
        lambda: {"hooks": [OnUpdate()]},
        r"round 2 but all 4 were refused \(the last one: Expected finite values from OnUpdate.on_update but got NaN",
    ),
    "on_step": (
        lambda: {"hooks": [OnStep()]},
        "finite steps from OnStep.on_step in round 2 but got NaN or Inf in 'classifier.bias'",
    ),
    "aggregator": (
        lambda: {"aggregator": Mean(), "hooks": [OnStep()]},
        "finite steps from Mean.compute in round 2 but got NaN or Inf in 'classifier.bias'",
    ),
    "optimizer": (
        lambda: {"server_optimizer": partial(Optimizer, lr=1.0)},
        "finite models from the server's optimizer Optimizer in round 2 but got NaN or Inf in 'classifier.bias'",
    ),
}


@pytest.mark.filterwarnings("ignore:.*refused")
@pytest.mark.parametrize("case", CASES)
def test_nan_is_reported_with_its_source_and_round(case: str, fit: Fit) -> None:
    make, message = CASES[case]
    with pytest.raises(ConfigurationError, match=message):
        fit(small_module(**make()), rounds=3, limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:.*refused")
def test_nan_of_a_clients_training_is_not_the_hooks(fit: Fit) -> None:
    local = LocalTraining(optimizer=lambda p: SGD(p, lr=1e30))
    with pytest.raises(
        ConfigurationError, match="round 1 but all 4 were refused .*finite entries from client"
    ) as error:
        fit(small_module(hooks=[OnDelta()], local=local), rounds=1)
    assert "OnDelta" not in str(error.value)
