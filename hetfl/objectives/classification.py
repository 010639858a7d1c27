"""One class per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.objectives.base import Objective, expected_targets
from hetfl.runs.headline import Headline
from hetfl.tree import on_device

Headlines = Literal["accuracy", "macro_f1"]
"""The score by which models are compared."""


class Classification(Objective):
    r"""Each sample has one of K classes; the loss is the cross-entropy.

    .. math:: L = \frac{\sum_n w_{y_n} \, \mathrm{CE}(z_n, y_n)}{\sum_n w_{y_n}}

    Targets are whole numbers from 0, shape (N,); outputs are logits, shape (N, K).

    Args:
        class_weights: weight w of each class; None: 1.
        label_smoothing: fraction of the probability that is spread evenly over all classes.
        top_k: also log ``top<k>_accuracy``, which counts the class if it is among the k most probable; None: no.
        macro_f1: also log ``macro_f1``, the mean of the F1 scores of the classes.
        headline: the score by which models are compared.

    Raises:
        ConfigurationError: a weight is not positive, the smoothing is outside [0, 1), k is below 2, or the headline is
            unknown.
    """

    target_dims: ClassVar[int] = 1
    owns_labels: ClassVar[bool] = True
    probabilities: ClassVar[bool] = True

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        top_k: int | None = None,
        macro_f1: bool = False,
        headline: Headlines = "accuracy",
    ) -> None:
        if class_weights is not None and not all(0 < weight < math.inf for weight in class_weights):
            raise ConfigurationError(f"Expected class_weights above 0 but got {list(class_weights)}")
        if not 0 <= label_smoothing < 1:
            raise ConfigurationError(f"Expected label_smoothing in [0, 1) but got {label_smoothing}")
        if top_k is not None and top_k < 2:
            raise ConfigurationError(f"Expected top_k of at least 2 or null but got {top_k}")
        self.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        self.label_smoothing, self.top_k, self.macro_f1 = label_smoothing, top_k, macro_f1
        title = "" if choice("headline", headline, Headlines) == "accuracy" else "macro F1"
        self.headline = Headline(headline, title=title)

    def settings(self) -> dict[str, object]:  # noqa: D102
        return {**super().settings(), "headline": self.headline.name}

    def noun(self, size: int) -> str:  # noqa: D102
        return f"{size} classes"

    def prepared(self, targets: Tensor, where: str) -> Tensor:  # noqa: D102
        if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise expected_targets("whole numbers of shape (n,)", targets, where, type(self).__name__)
        return targets.long()

    def size(self, targets: Tensor) -> int:  # noqa: D102
        return 1 + int(targets.max())

    def check_size(self, targets: Tensor, size: int, where: str) -> None:  # noqa: D102
        if int(targets.min()) < 0 or int(targets.max()) >= size:
            raise ConfigurationError(
                f"Expected {where} targets in [0, {size}) but got {int(targets.min())} to {int(targets.max())}"
            )
        if self.class_weights is not None and len(self.class_weights) != size:
            raise ConfigurationError(
                f"Expected class_weights for {size} classes, those of the data, but got {len(self.class_weights)}"
            )
        if self.top_k is not None and self.top_k >= size:
            raise ConfigurationError(f"Expected top_k below {size}, the number of classes, but got {self.top_k}")

    def single_labels(self, targets: Tensor) -> Tensor:  # noqa: D102
        return targets

    def label_counts(self, targets: Tensor, size: int) -> Tensor:  # noqa: D102
        return targets.bincount(minlength=size)

    def _weights(self, like: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        dtype = torch.promote_types(like.dtype, torch.float32)  # bfloat16 would round them
        return on_device(torch.tensor(self.class_weights, dtype=dtype), like.device)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        weights_K = self._weights(outputs)
        if outputs.dim() == 2:
            return F.cross_entropy(outputs, targets, weights_K, label_smoothing=self.label_smoothing)
        losses = F.cross_entropy(
            outputs.flatten(0, -2),
            targets.flatten(),
            weights_K,
            reduction="none",
            label_smoothing=self.label_smoothing,
        ).view(targets.shape)
        return losses.mean(-1) if weights_K is None else losses.sum(-1) / weights_K[targets].sum(-1)

    def weight(self, targets: Tensor) -> float:  # noqa: D102
        if self.class_weights is None:
            return len(targets)
        return torch.tensor(self.class_weights, dtype=torch.float64)[targets.cpu()].sum().item()

    def metrics(self, size: int) -> Mapping[str, Metric]:  # noqa: D102
        metrics: dict[str, Metric] = {"accuracy": MulticlassAccuracy(size, average="micro", sync_on_compute=False)}
        if self.top_k is not None:
            metrics[f"top{self.top_k}_accuracy"] = MulticlassAccuracy(
                size, top_k=self.top_k, average="micro", sync_on_compute=False
            )
        if self.macro_f1 or self.headline.name == "macro_f1":
            metrics["macro_f1"] = MulticlassF1Score(size, average="macro", sync_on_compute=False)
        name = self.headline.name
        return {name: metrics.pop(name), **metrics}

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        guesses = outputs.argmax(-1)
        unknown = outputs.isnan().any(-1)
        if self.headline.name == "accuracy":
            correct = (guesses == targets).double().masked_fill(unknown, torch.nan)
            return torch.stack([correct, torch.ones_like(correct)], dim=-1)
        size = outputs.shape[-1]
        guessed, given = (F.one_hot(each, size).double() for each in (guesses, targets))
        return torch.cat([guessed * given, guessed, given], dim=-1).masked_fill(unknown.unsqueeze(-1), torch.nan)

    def score(self, sums: Tensor) -> Tensor:  # noqa: D102
        if self.headline.name == "accuracy":
            return sums[..., 0] / sums[..., 1]
        right, guessed, given = sums.chunk(3, dim=-1)
        present = (guessed + given) > 0
        f1 = torch.where(present, 2 * right / (guessed + given), 0.0)
        f1 = torch.where(sums.isnan().any(-1, keepdim=True), torch.nan, f1)
        return f1.sum(-1) / present.sum(-1)
