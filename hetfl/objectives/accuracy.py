"""Accuracy of every level, and of the global model on each client's own data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from hetfl.metrics_file import score_column


class LevelMetrics(nn.Module):
    """Loss of the global model, and accuracy of each level and of the global model's heads, over an evaluation.

    Logits of NaN are no prediction: accuracy and loss are then NaN, and not those of the first class or of the rest.

    Args:
        levels: names of the levels, the global model's first.
        num_classes: classes K.
    """

    def __init__(self, levels: Sequence[str], num_classes: int) -> None:
        super().__init__()
        self.largest, self.num_classes = levels[0], num_classes
        self.accuracy = nn.ModuleDict({level: self._metric() for level in levels})
        self.loss = MeanMetric(sync_on_compute=False)  # every rank evaluates everything
        self.count = 0
        self._without: set[str] = set()  # levels and heads that gave NaN

    def _metric(self) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.num_classes, average="micro", sync_on_compute=False)

    def update(self, logits_NK: Mapping[str, Tensor], targets_N: Tensor) -> None:
        """Take one batch's logits of every level, and of heads by their names."""
        for name, logits in logits_NK.items():
            if name not in self.accuracy:
                self.accuracy[name] = self._metric().to(logits.device)
            self.accuracy[name].update(logits, targets_N)  # type: ignore[operator]
            if bool(logits.isnan().any()):
                self._without.add(name)
        if self.largest not in self._without:
            self.loss.update(F.cross_entropy(logits_NK[self.largest], targets_N), len(targets_N))
        self.count += len(targets_N)

    def compute(self, stage: str) -> dict[str, Tensor]:
        """Return and forget a stage's ``loss``, ``accuracy``, ``accuracy_by_level``, ``accuracy_by_head``."""
        metrics = cast(Mapping[str, MulticlassAccuracy], dict(self.accuracy.items()))
        values = {name: metric.compute() for name, metric in metrics.items()}
        values |= {name: torch.full_like(values[name], torch.nan) for name in self._without}
        loss = torch.full_like(values[self.largest], torch.nan)
        if self.largest not in self._without:
            loss = self.loss.compute()
        columns = {f"{stage}/loss": loss, f"{stage}/accuracy": values[self.largest]}
        columns |= {score_column(stage, name): value for name, value in values.items()}
        for metric in (self.loss, *metrics.values()):
            metric.reset()
        self.count, self._without = 0, set()
        return columns


def weighted_mean(parts: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return per column the mean over parts, each with its weight; of a single part as it is."""
    if len(parts) == 1:
        return dict(parts[0][1])
    total = sum(weight for weight, _ in parts)
    names = parts[0][1] if parts else ()
    return {name: torch.stack([w / total * values[name] for w, values in parts]).sum(0) for name in names}


class ClientAccuracy:
    """Accuracy of one model per sample on each client's own test data: mean, worst tenth, and how it spreads.

    A client with logits of NaN has no accuracy but NaN, and so have all figures over clients.

    Args:
        num_clients: size N of the fleet.
        labels: returns which classes a client's training data has, bool (K,).
        restrict: what a method does to logits (N, K) of classes that a client does not own, given labels (N, K).
    """

    def __init__(
        self, num_clients: int, labels: Callable[[int], Tensor], restrict: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.labels_SK = torch.stack([labels(client) for client in range(num_clients)])
        self.restrict = restrict
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.correct_S = torch.zeros(len(self.labels_SK), dtype=torch.float64)
        self.count_S = torch.zeros(len(self.labels_SK), dtype=torch.float64)

    def update(self, logits_NK: Tensor, targets_N: Tensor, owner_N: Tensor) -> None:
        """Take one batch; ``owner_N`` is the client that each sample belongs to, -1 for nobody's."""
        owned = owner_N >= 0
        owner, targets = owner_N[owned].cpu(), targets_N[owned].cpu()
        own_logits = self.restrict(logits_NK[owned].cpu(), self.labels_SK[owner])
        correct = (own_logits.argmax(-1) == targets).double().masked_fill(own_logits.isnan().any(-1), torch.nan)
        self.correct_S.index_add_(0, owner, correct)
        self.count_S.index_add_(0, owner, torch.ones_like(correct))

    def per_client(self) -> list[float | None]:
        """Return each client's accuracy; None for one without test data."""
        return [
            correct / count if count else None
            for correct, count in zip(self.correct_S.tolist(), self.count_S.tolist(), strict=True)
        ]

    def mean(self) -> Tensor:
        """Return the mean over clients that have test data, each counting the same; NaN without any."""
        has = self.count_S > 0
        return (self.correct_S[has] / self.count_S[has]).mean()

    def compute(self) -> dict[str, Tensor]:
        """Return and forget ``local/*``, over clients that have test data.

        In ``local/accuracy_by_samples`` a client counts by its number of test samples, in all others every client
        counts the same.

        - ``local/accuracy_mean``: the mean.
        - ``local/accuracy_by_samples``: correct predictions over samples, of all clients together (what HeteroFL's
          authors report).
        - ``local/accuracy_worst10``: the mean over the worst tenth of the clients, at least one.
        - ``local/accuracy_std``, ``local/accuracy_var``: standard deviation and variance, of these very clients
          (divided by their number, as q-FFL reports it).
        """
        has = self.count_S > 0
        accuracy = (self.correct_S[has] / self.count_S[has]).sort().values
        by_samples = self.correct_S.sum() / self.count_S.sum()
        self.reset()
        if not len(accuracy):
            return {}
        if bool(accuracy.isnan().any()):  # sorted they would be the best
            accuracy = torch.full_like(accuracy, torch.nan)
        worst = accuracy[: max(1, len(accuracy) // 10)]
        return {
            "local/accuracy_mean": accuracy.mean(),
            "local/accuracy_by_samples": by_samples,
            "local/accuracy_worst10": worst.mean(),
            "local/accuracy_std": accuracy.std(correction=0),
            "local/accuracy_var": accuracy.var(correction=0),
        }
