"""Scores of each level, and of the global model on the data of each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from hetfl.objectives.base import Objective
from hetfl.objectives.contract import computed


class LevelScores(nn.Module):
    """Loss and metrics of the global model, and the headline of each level and each head, over an evaluation.

    If an output is NaN, the scores and the loss are NaN.

    Args:
        levels: names of the levels, that of the global model first.
        objective: defines the metrics.
        size: number K of outputs.
    """

    def __init__(self, levels: Sequence[str], objective: Objective, size: int) -> None:
        super().__init__()
        self.largest, self.objective, self.size = levels[0], objective, size
        metrics = objective.metrics(size)
        self.headlines = nn.ModuleDict({_key(level): self._headline() for level in levels[1:]})
        self.headlines[_key(self.largest)] = metrics[objective.headline.name]
        self.others = nn.ModuleDict({name: m for name, m in metrics.items() if name != objective.headline.name})
        self.loss = MeanMetric(sync_on_compute=False)  # every rank evaluates everything
        self.count = 0
        self._without: set[str] = set()  # levels and heads that gave NaN
        self._lost = False  # whether a loss was NaN

    def _headline(self) -> Metric:
        return self.objective.metrics(self.size)[self.objective.headline.name]

    def update(self, outputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Add one batch.

        Args:
            outputs: outputs by name of the level or head.
            targets: prepared targets.
        """
        for name, values in outputs.items():
            if _key(name) not in self.headlines:
                self.headlines[_key(name)] = self._headline().to(values.device)
            predicted = self.objective.predicted(values)
            self.headlines[_key(name)].update(predicted, targets)  # type: ignore[operator]
            if name == self.largest:
                for metric in self.others.values():
                    metric.update(predicted, targets)  # type: ignore[operator]
            if bool(values.isnan().any()):
                self._without.add(name)
        loss = self.objective.loss(outputs[self.largest], targets)
        if bool(loss.isnan()):  # torchmetrics would ignore it
            self._lost = True
        else:
            self.loss.update(loss, self.objective.weight(targets))
        self.count += len(targets)

    def compute(self, stage: str) -> dict[str, Tensor]:
        """Return the loss, metrics, and headlines by level and by head under the names of a stage; then reset.

        Raises:
            ConfigurationError: a metric is not one number.
        """
        headlines = {_name(key): cast(Metric, metric) for key, metric in self.headlines.items()}
        others = cast(Mapping[str, Metric], dict(self.others.items()))
        headline, column = self.objective.headline.name, self.objective.headline.column
        values = {name: computed(self.objective, headline, metric) for name, metric in headlines.items()}
        values |= {name: torch.full_like(values[name], torch.nan) for name in self._without}
        further = {f"{stage}/{name}": computed(self.objective, name, metric) for name, metric in others.items()}
        loss = torch.full((), torch.nan, device=values[self.largest].device)
        if self.largest in self._without:
            further = {name: torch.full_like(value, torch.nan) for name, value in further.items()}
        if not self._lost:
            loss = self.loss.compute()
        columns = {f"{stage}/loss": loss, column(stage): values[self.largest], **further}
        columns |= {column(stage, name): value for name, value in values.items()}
        for metric in (self.loss, *headlines.values(), *others.values()):
            metric.reset()
        self.count, self._without, self._lost = 0, set(), False
        return columns


def _key(name: str) -> str:
    """Return a name that is no attribute of a module."""
    return f"of {name}"


def _name(key: str) -> str:
    return key.removeprefix("of ")


def beside(labels: Tensor, outputs: Tensor) -> Tensor:
    """Return labels (..., K) with dimensions of 1 before the last, to broadcast to outputs (..., N, ..., K)."""
    return labels.view(*labels.shape[:-1], *[1] * (outputs.dim() - labels.dim()), labels.shape[-1])


def weighted_mean(parts: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the weighted mean of each column over parts; a single part is returned unchanged."""
    if len(parts) == 1:
        return dict(parts[0][1])
    total = sum(weight for weight, _ in parts)
    names = parts[0][1] if parts else ()
    return {name: torch.stack([w / total * values[name] for w, values in parts]).sum(0) for name in names}


class ClientScores:
    """The headline of one model on the test data of each client: mean, worst tenth, and spread.

    A client with NaN outputs has the score NaN, and all statistics over clients are then NaN. A client without test
    data has no score, and neither has a client whose score is undefined, such as R² of a single sample.

    Args:
        num_clients: number of clients N.
        objective: defines the headline.
    """

    def __init__(self, num_clients: int, objective: Objective) -> None:
        self.num_clients, self.objective = num_clients, objective
        self.reset()

    def reset(self) -> None:
        """Forget all samples."""
        self.sums_SM = torch.zeros(self.num_clients, 1, dtype=torch.float64)
        self.count_S = torch.zeros(self.num_clients, dtype=torch.float64)

    def update(self, sums_NM: Tensor, owner_N: Tensor) -> None:
        """Add one batch.

        Args:
            sums_NM: the numbers of each sample from :meth:`Objective.sums`.
            owner_N: the client of each sample, or -1.
        """
        owned = owner_N >= 0
        owner, sums = owner_N[owned].cpu(), sums_NM[owned].cpu()
        if self.sums_SM.shape[1] != sums.shape[1]:
            self.sums_SM = torch.zeros(self.num_clients, sums.shape[1], dtype=torch.float64)
        self.sums_SM.index_add_(0, owner, sums)
        self.count_S.index_add_(0, owner, torch.ones(len(owner), dtype=torch.float64))

    def add(self, client: int, sums_M: Tensor, count: int) -> None:
        """Add samples of a client.

        Args:
            client: the client.
            sums_M: the sums over the samples of the numbers from :meth:`Objective.sums`.
            count: number of the samples.
        """
        if self.sums_SM.shape[1] != len(sums_M):
            self.sums_SM = torch.zeros(self.num_clients, len(sums_M), dtype=torch.float64)
        self.sums_SM[client] += sums_M
        self.count_S[client] += count

    def _scores(self) -> tuple[Tensor, Tensor]:
        """Return which clients have a score, bool (N,), and their scores in the order of the clients."""
        has_S = self.count_S > 0
        if not bool(has_S.any()):
            return has_S, self.count_S[:0]
        scores_S = self.objective.score(self.sums_SM)
        has_S &= ~scores_S.isnan() | self.sums_SM.isnan().any(1)
        return has_S, scores_S[has_S]

    def per_client(self) -> list[float | None]:
        """Return the score of each client; None for a client without a score."""
        has_S, scores = self._scores()
        in_order = iter(scores.tolist())
        return [next(in_order) if has else None for has in has_S.tolist()]

    def mean(self) -> Tensor:
        """Return the unweighted mean over clients with a score; NaN if no client has a score."""
        return self._scores()[1].mean()

    def compute(self) -> dict[str, Tensor]:
        """Return ``local/*`` statistics of the headline over the clients with a score; then reset.

        Clients have equal weights, except in ``by_samples``. For the headline ``accuracy`` the columns are:

        - ``local/accuracy_mean``: the mean.
        - ``local/accuracy_by_samples``: the score of the samples of all clients together, as HeteroFL's authors report.
        - ``local/accuracy_worst10``: the mean over the worst tenth of the clients, at least one client.
        - ``local/accuracy_std``, ``local/accuracy_var``: standard deviation and variance, divided by the number of
          clients, as q-FFL reports them.
        """
        headline = self.objective.headline
        scores, sums_M = self._scores()[1], self.sums_SM.sum(0)
        self.reset()
        if not len(scores):
            return {}
        scores = scores.sort(descending=not headline.higher_is_better).values
        if bool(scores.isnan().any()):  # NaN would sort as the best score
            scores = torch.full_like(scores, torch.nan)
        worst = scores[: max(1, len(scores) // 10)]
        return {
            headline.local("mean"): scores.mean(),
            headline.local("by_samples"): self.objective.score(sums_M),
            headline.local("worst10"): worst.mean(),
            headline.local("std"): scores.std(correction=0),
            headline.local("var"): scores.var(correction=0),
        }
