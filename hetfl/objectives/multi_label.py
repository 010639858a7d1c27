"""Multi-label classification: any number of classes per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score

from hetfl.errors import ConfigurationError
from hetfl.objectives.base import Objective, expected_targets
from hetfl.runs.headline import Headline
from hetfl.tree import on_device


class MultiLabel(Objective):
    r"""Each sample has any number of K labels; the loss is the binary cross-entropy, averaged over labels.

    .. math:: L = -\frac{1}{N K} \sum_{n, k} w_k y_{nk} \log \sigma(z_{nk}) + (1 - y_{nk}) \log(1 - \sigma(z_{nk}))

    Targets are 0 or 1, or bools, shape (N, K); outputs are logits, shape (N, K). A label is predicted where
    :math:`\sigma(z) > 1/2`. The headline is ``f1``, computed over all samples and labels together. ``macro_f1``, the
    mean of the F1 scores of the labels, and ``exact_match``, the fraction of samples with all labels right, are logged
    too. Without positive targets and positive predictions F1 is 1. A client owns the labels that its samples have.

    Args:
        positive_weights: weight w of the positive term of each label; None: 1.

    Raises:
        ConfigurationError: a weight is not positive.
    """

    owns_labels: ClassVar[bool] = True
    headline = Headline("f1", title="F1")

    def __init__(self, positive_weights: Sequence[float] | None = None) -> None:
        if positive_weights is not None and not all(0 < weight < float("inf") for weight in positive_weights):
            raise ConfigurationError(f"Expected positive_weights above 0 but got {list(positive_weights)}")
        self.positive_weights = None if positive_weights is None else [float(weight) for weight in positive_weights]

    def noun(self, size: int) -> str:  # noqa: D102
        return f"{size} labels"

    def prepared(self, targets: Tensor, where: str) -> Tensor:  # noqa: D102
        if targets.dim() != 2 or not bool(((targets == 0) | (targets == 1)).all()):
            raise expected_targets("0 or 1 of shape (n, labels)", targets, where, type(self).__name__)
        return targets.to(torch.uint8)

    def size(self, targets: Tensor) -> int:  # noqa: D102
        return targets.shape[1]

    def check_size(self, targets: Tensor, size: int, where: str) -> None:  # noqa: D102
        if targets.shape[1] != size:
            raise ConfigurationError(f"Expected {where} targets of {size} labels but got {targets.shape[1]}")
        if self.positive_weights is not None and len(self.positive_weights) != size:
            raise ConfigurationError(
                f"Expected positive_weights for {size} labels, those of the data, but got {len(self.positive_weights)}"
            )

    def label_counts(self, targets: Tensor, size: int) -> Tensor:  # noqa: D102
        return targets.sum(0, dtype=torch.int64)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # bfloat16 would round the weights
        weights_K = None
        if self.positive_weights is not None:
            weights_K = on_device(torch.tensor(self.positive_weights, dtype=outputs.dtype), outputs.device)
        losses = F.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs.dtype), reduction="none", pos_weight=weights_K
        )
        return losses.mean((-2, -1))

    def metrics(self, size: int) -> Mapping[str, Metric]:  # noqa: D102
        return {
            "f1": MultilabelF1Score(size, average="micro", zero_division=1, sync_on_compute=False),
            "macro_f1": MultilabelF1Score(size, average="macro", zero_division=1, sync_on_compute=False),
            "exact_match": MultilabelExactMatch(size, sync_on_compute=False),
        }

    def predicted(self, outputs: Tensor) -> Tensor:
        """Return which labels are predicted, int64; metrics would treat logits in [0, 1] as probabilities."""
        return (outputs > 0).long()

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: D102
        guessed, given = (outputs > 0).double(), targets.double()
        counts = torch.stack([(guessed * given).sum(-1), guessed.sum(-1), given.sum(-1)], dim=-1)
        return counts.masked_fill(outputs.isnan().any(-1, keepdim=True), torch.nan)

    def score(self, sums: Tensor) -> Tensor:  # noqa: D102
        right, guessed, given = sums.unbind(-1)
        return torch.where(guessed + given == 0, 1.0, 2 * right / (guessed + given))
