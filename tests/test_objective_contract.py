"""An objective that breaks its contract is refused by name before the first round, and by ``check_objective``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MultilabelF1Score

from hetfl import ConfigurationError, FedAvg, testing
from hetfl.cli import FederatedTrainer
from hetfl.data import TensorData
from hetfl.models import MLP
from hetfl.objectives import Headline, LevelScores, Objective
from hetfl.selection import Uniform
from tests.conftest import small_levels
from tests.objective_cases import FEATURES, classes


class Own(Objective):
    """One class per sample, without any method that could be left out."""

    target_dims = 1
    headline = Headline("accuracy")

    def prepared(self, targets: Tensor, where: str) -> Tensor:
        return targets.long()

    def size(self, targets: Tensor) -> int:
        return int(targets.max()) + 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return losses.view(targets.shape).mean(-1)

    def metrics(self, size: int) -> Mapping[str, Metric]:
        return {"accuracy": MulticlassAccuracy(size, average="micro")}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        right = (outputs.argmax(-1) == targets).double().masked_fill(outputs.isnan().any(-1), torch.nan)
        return torch.stack([right, torch.ones_like(right)], dim=-1)

    def score(self, sums: Tensor) -> Tensor:
        return sums[..., 0] / sums[..., 1]


def set_up(objective: Objective) -> None:
    """Set a run up with 120 training and 40 test samples of three classes, and run nothing."""
    (train, train_targets), (test, test_targets) = classes(120, 0), classes(40, 1)
    tests: dict[str, Any] = {"test_inputs": test, "test_targets": test_targets}
    data = TensorData(train_inputs=train, train_targets=train_targets, **tests, num_clients=4, objective=objective)
    module = FedAvg(partial(MLP, FEATURES, 3, hidden=(8,)), small_levels(1.0), selection=Uniform(2))
    FederatedTrainer(logger=False, enable_progress_bar=False).introduce(module, data)


def checked(objective: Objective) -> None:
    testing.check_objective(objective, classes(40, 1)[1])


Call = Callable[..., Any]
BROKEN: dict[str, tuple[str, Any, str]] = {
    "headline as text": ("headline", "accuracy", r"a headline \(hetfl.objectives.Headline\) in Own but got str"),
    "targets of two dimensions": (
        "prepared",
        lambda self, targets, where: targets.float().unsqueeze(1),
        r"training targets of target_dims = 1 from Own.prepared but got float32 \(\d+, 1\)",
    ),
    "classes as floats": (
        "single_labels",
        lambda self, targets: targets.float(),
        r"classes as int64 of shape \(\d+,\) from Own.single_labels but got float32",
    ),
    "size as a tensor": (
        "size",
        lambda self, targets: targets.max() + 1,
        r"a whole number of outputs, at least 1, from Own.size but got tensor\(3\)",
    ),
    "an output too few": (
        "size",
        lambda self, targets: int(targets.max()),
        "Own.loss to take training targets from 0 to 2 with 2 outputs but got: Target 2 is out of bounds",
    ),
    "loss of each sample": (
        "loss",
        lambda self, outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        r"one loss of a batch from Own.loss but got float32 \(\d+,\)",
    ),
    "metric of another name": (
        "metrics",
        lambda self, size: {"acc": MulticlassAccuracy(size)},
        "the headline 'accuracy' first in Own.metrics but got acc",
    ),
    "without predicted": (
        "metrics",
        lambda self, size: {"accuracy": MultilabelF1Score(size)},
        r"predictions from Own.predicted that its metric 'accuracy' takes but got float32 \(\d+, 3\) for targets of "
        r"int64 \(\d+,\): Predictions and targets are expected to have the same shape",
    ),
    "sums as float32": (
        "sums",
        lambda self, outputs, targets: torch.ones(len(targets), 2),
        r"sums as float64 of shape \(\d+, M\) from Own.sums but got float32 \(\d+, 2\)",
    ),
    "score of each sum": (
        "score",
        lambda self, sums: sums,
        r"one score of the sums of a batch from Own.score but got float64 \(2,\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("by", [set_up, checked])
def test_a_broken_objective_is_refused_by_name(case: str, by: Callable[[Objective], None]) -> None:
    name, value, message = BROKEN[case]
    by(Own())
    with pytest.raises(ConfigurationError, match=f"^Expected {message}") as error:
        by(type("Own", (Own,), {name: value})())
    assert "\n" not in str(error.value)


def test_a_metric_of_several_numbers_is_refused_by_name() -> None:
    class PerClass(Own):
        def metrics(self, size: int) -> Mapping[str, Metric]:
            return {**super().metrics(size), "each": MulticlassAccuracy(size, average=None)}

    scores = LevelScores(["a"], PerClass(), 3)
    scores.update({"a": torch.eye(3)}, torch.arange(3))
    with pytest.raises(
        ConfigurationError, match=r"one number from the metric 'each' of PerClass but got float32 \(3,\)"
    ):
        scores.compute("val")
