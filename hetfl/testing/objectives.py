"""The check of the contract of objectives."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from hetfl.objectives import Objective
from hetfl.objectives.contract import check_results, check_targets, prepared_targets, size_of
from hetfl.testing.rules import factory, random, require, same


def check_objective(objective: Objective | Callable[[], Objective], targets: Tensor, size: int | None = None) -> None:
    """Check that an objective follows its contract.

    - It has a headline. ``prepared`` returns as many targets as it gets, of ``target_dims`` dimensions, and does not
      change targets that are prepared already. Classes and label counts are int64.
    - The loss of a batch is one finite number with a gradient; with a leading dimension of clients, one per client.
      The mean of the losses of two parts of a batch, weighted by ``weight``, is the loss of the batch.
    - The first metric is the headline. All metrics take what ``predicted`` returns.
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
    require(len(targets) >= 8, f"at least 8 targets for the check of {name}", len(targets))
    prepared = prepared_targets(made, targets, "training")
    twice = made.prepared(prepared, "training") if prepared.dtype == targets.dtype else prepared
    require(same(twice, prepared), f"{name}.prepared to leave prepared targets as they are", "others")
    needed = size_of(made, prepared) if size is None else size
    check_targets(made, prepared, needed, "training")
    shape = made.output_shape(prepared, needed)
    require(shape[0] == len(targets), f"outputs of {len(targets)} samples from {name}.output_shape", shape)
    outputs = torch.randn(shape, generator=random(0), dtype=torch.float64)
    exact = prepared.double() if prepared.is_floating_point() else prepared
    metrics = check_results(made, outputs.float(), prepared, needed)
    headline = metrics[made.headline.name]
    fresh = made.metrics(needed)[made.headline.name] is not headline
    require(fresh, f"new metrics from every call of {name}.metrics", "the same ones")
    _check_loss(made, outputs, exact)
    _check_scores(made, headline, outputs, exact)


def _check_loss(objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    name = type(objective).__name__
    learnt = outputs.clone().requires_grad_()
    loss = objective.loss(learnt, targets)
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


def _check_scores(objective: Objective, headline: Metric, outputs: Tensor, targets: Tensor) -> None:
    name = type(objective).__name__
    sums = objective.sums(outputs, targets)
    expected, computed = float(headline.compute()), float(objective.score(sums.sum(0)))
    rule = f"{name}.score of the sums to be the metric {objective.headline.name!r}, {expected:g},"
    require(math.isclose(expected, computed, rel_tol=1e-4, abs_tol=1e-6), rule, f"{computed:g}")
    several = objective.score(torch.stack([sums.sum(0), sums[:5].sum(0)]))
    require(several.shape == (2,), f"a score of each row of sums from {name}.score", f"shape {tuple(several.shape)}")
    unknown = outputs.clone()
    unknown[2] = torch.nan
    score = float(objective.score(objective.sums(unknown, targets).sum(0)))
    require(math.isnan(score), f"a score of NaN where outputs are NaN from {name}", f"{score:g}")
