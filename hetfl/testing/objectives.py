"""The check of the contract of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from hetfl.objectives import Headline, Objective
from hetfl.testing.rules import factory, random, require, same


def check_objective(objective: Objective | Callable[[], Objective], targets: Tensor, size: int | None = None) -> None:
    """Check that an objective follows its contract.

    - ``prepared`` does not change targets that are prepared already.
    - The loss of a batch is one finite number with a gradient; with a leading dimension of clients, one per client.
      The mean of the losses of two parts of a batch, weighted by ``weight``, is the loss of the batch.
    - ``sums`` are float64. ``score`` of their sum is the headline that the metrics compute; NaN outputs give NaN.

    Args:
        objective: an object, or a function that makes new objects.
        targets: at least eight targets in the form of the data, shape (n, ...).
        size: number of outputs K; None: the largest that the targets need.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    made = factory(objective, Objective)()
    name = type(made).__name__
    headline = getattr(made, "headline", None)
    got = type(headline).__name__
    require(isinstance(headline, Headline), f"a headline (hetfl.objectives.Headline) in {name}", got)
    prepared = made.prepared(targets, "training")
    require(
        len(prepared) == len(targets) >= 8, f"{len(targets)} targets, at least 8, from {name}.prepared", len(prepared)
    )
    require(
        prepared.dim() == made.target_dims, f"targets of target_dims = {made.target_dims} in {name}", prepared.dim()
    )
    twice = made.prepared(prepared, "training") if prepared.dtype == targets.dtype else prepared
    require(same(twice, prepared), f"{name}.prepared to leave prepared targets as they are", "others")
    needed = made.size(prepared) if size is None else size
    made.check_size(prepared, needed, "training")
    counts = made.label_counts(prepared, needed)
    right = counts.dtype == torch.int64 and counts.shape == (needed,)
    require(right, f"label counts as int64 of shape ({needed},) from {name}", f"{counts.dtype} {tuple(counts.shape)}")
    shape = made.output_shape(prepared, needed)
    require(shape[0] == len(targets), f"outputs of {len(targets)} samples from {name}.output_shape", shape)
    outputs = torch.randn(shape, generator=random(0), dtype=torch.float64)
    exact = prepared.double() if prepared.is_floating_point() else prepared
    _check_loss(made, outputs, exact)
    _check_scores(made, outputs, exact, needed)


def _check_loss(objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    name = type(objective).__name__
    learnt = outputs.clone().requires_grad_()
    loss = objective.loss(learnt, targets)
    require(loss.shape == (), f"one loss of a batch from {name}.loss", f"shape {tuple(loss.shape)}")
    require(bool(loss.isfinite()), f"a finite loss from {name}", float(loss.detach()))
    require(loss.requires_grad, f"a loss with a gradient from {name}", "one without")
    loss.backward()
    assert learnt.grad is not None
    require(bool(learnt.grad.any() & learnt.grad.isfinite().all()), f"a gradient from {name}.loss", "0 or NaN")
    several = objective.loss(torch.stack([outputs, -outputs]), torch.stack([targets, targets]))
    each = torch.stack([objective.loss(sign * outputs, targets) for sign in (1, -1)])
    right = several.shape == (2,) and torch.allclose(several, each, rtol=1e-9)
    require(right, f"a loss of each leading dimension, as for each alone, from {name}.loss", several.tolist())
    parts = [(outputs[:3], targets[:3]), (outputs[3:], targets[3:])]
    weights = [objective.weight(part) for _, part in parts]
    require(min(weights) > 0, f"weights above 0 from {name}.weight", weights)
    losses = [float(objective.loss(*part)) for part in parts]
    whole = float(loss.detach())
    mean = sum(w * each for w, each in zip(weights, losses, strict=True)) / sum(weights)
    right = math.isclose(mean, whole, rel_tol=1e-6)
    require(right, f"losses of batches whose mean, by {name}.weight, is the whole's {whole:g}", f"{mean:g}")


def _check_scores(objective: Objective, outputs: Tensor, targets: Tensor, size: int) -> None:
    name = type(objective).__name__
    metrics = objective.metrics(size)
    first = next(iter(metrics), None)
    require(
        first == objective.headline.name, f"the headline {objective.headline.name!r} first in {name}.metrics", first
    )
    right = all(isinstance(metric, Metric) for metric in metrics.values())
    require(right, f"metrics of torchmetrics from {name}", [type(metric).__name__ for metric in metrics.values()])
    fresh = objective.metrics(size)[objective.headline.name] is not metrics[objective.headline.name]
    require(fresh, f"new metrics from every call of {name}.metrics", "the same ones")
    sums = objective.sums(outputs, targets)
    right = sums.dtype == torch.float64 and sums.dim() == 2 and len(sums) == len(outputs)
    require(right, f"sums as float64 of shape (N, M) from {name}", f"{sums.dtype} {tuple(sums.shape)}")
    headline = metrics[objective.headline.name]
    headline.update(objective.predicted(outputs), targets)
    expected, computed = float(headline.compute()), float(objective.score(sums.sum(0)))
    rule = f"{name}.score of the sums to be the metric {objective.headline.name!r}, {expected:g},"
    require(math.isclose(expected, computed, rel_tol=1e-4, abs_tol=1e-6), rule, f"{computed:g}")
    several = objective.score(torch.stack([sums.sum(0), sums[:5].sum(0)]))
    require(several.shape == (2,), f"a score of each row of sums from {name}.score", f"shape {tuple(several.shape)}")
    unknown = outputs.clone()
    unknown[2] = torch.nan
    score = float(objective.score(objective.sums(unknown, targets).sum(0)))
    require(math.isnan(score), f"a score of NaN where outputs are NaN from {name}", f"{score:g}")
