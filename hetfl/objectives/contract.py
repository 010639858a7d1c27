"""Checks of what an objective returns, before the first round and in :mod:`hetfl.testing`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from hetfl.errors import ConfigurationError
from hetfl.objectives.base import Objective
from hetfl.runs.headline import Headline
from hetfl.tree import in_words

FAULTS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
"""Errors of a method that was given values that it does not take."""


def prepared_targets(objective: Objective, targets: Tensor, where: str) -> Tensor:
    """Return the targets of a data set in the form that the loss takes, after a check of their form.

    Args:
        objective: the objective.
        targets: targets of the data, shape (n, ...).
        where: the part of the data, for messages: ``training`` or ``test``.

    Raises:
        ConfigurationError: the objective has no headline, does not take the targets, or returns targets or classes of
            another shape or type than its class declares.
    """
    name, headline = type(objective).__name__, getattr(objective, "headline", None)
    _require(isinstance(headline, Headline), f"a headline (hetfl.objectives.Headline) in {name}", _kind(headline))
    given = objective.prepared(targets, where)
    right = isinstance(given, Tensor) and given.shape[:1] == targets.shape[:1]
    _require(right, f"{len(targets)} {where} targets from {name}.prepared", _words(given))
    dims = objective.target_dims
    right = given.dim() == dims
    _require(right, f"{where} targets of target_dims = {dims} from {name}.prepared", _words(given))
    classes = objective.single_labels(given)
    right = classes is None or (classes.dtype == torch.int64 and classes.shape == given.shape[:1])
    _require(right, f"classes as int64 of shape ({len(given)},) from {name}.single_labels", _words(classes))
    return given


def size_of(objective: Objective, targets: Tensor) -> int:
    """Return the number K of outputs that prepared targets need.

    Raises:
        ConfigurationError: it is not a whole number of at least 1.
    """
    size = objective.size(targets)
    right = isinstance(size, int) and size >= 1
    _require(right, f"a whole number of outputs, at least 1, from {type(objective).__name__}.size", repr(size))
    return size


def check_targets(objective: Objective, targets: Tensor, size: int, where: str) -> None:
    """Refuse targets that K outputs cannot predict, and counts of labels of a wrong form.

    The loss is tried with the smallest and the largest of integer targets, and outputs of 0.

    Args:
        objective: the objective.
        targets: prepared targets.
        size: number K of outputs.
        where: the part of the data, for messages.

    Raises:
        ConfigurationError: a target is out of range, or the counts are not int64 of shape (K,).
    """
    name = type(objective).__name__
    objective.check_size(targets, size, where)
    counts = objective.label_counts(targets, size)
    right = counts.dtype == torch.int64 and counts.shape == (size,)
    _require(right, f"label counts as int64 of shape ({size},) from {name}", _words(counts))
    if targets.is_floating_point() or not targets.numel():
        return
    rows = targets.flatten(1) if targets.dim() > 1 else targets.unsqueeze(1)
    extremes = targets[torch.stack([rows.amin(1).argmin(), rows.amax(1).argmax()])]
    least, most, noun = int(rows.min()), int(rows.max()), objective.noun(size)
    outputs = torch.zeros(objective.output_shape(extremes, size))
    _called(
        objective.loss, f"{name}.loss to take {where} targets from {least} to {most} with {noun}", outputs, extremes
    )


def check_results(objective: Objective, outputs: Tensor, targets: Tensor, size: int) -> Mapping[str, Metric]:
    """Refuse an objective whose loss, metrics, sums or score have another form than a run needs.

    Args:
        objective: the objective.
        outputs: outputs of a net for a few samples.
        targets: their prepared targets.
        size: number K of outputs.

    Returns:
        The metrics, updated with the outputs.

    Raises:
        ConfigurationError: the loss or the score is not one number, the headline is not the first metric, a metric does
            not take the predictions, or the sums are not float64 of shape (N, M).
    """
    name, headline, given = type(objective).__name__, objective.headline.name, _words(outputs, targets)
    loss = _called(objective.loss, f"{name}.loss to take outputs and targets of {given}", outputs, targets)
    _require(_is_number(loss), f"one loss of a batch from {name}.loss", _words(loss))
    metrics = objective.metrics(size)
    _require(isinstance(metrics, Mapping), f"metrics by name from {name}.metrics", _kind(metrics))
    first = next(iter(metrics), None)
    _require(first == headline, f"the headline {headline!r} first in {name}.metrics", first)
    right = all(isinstance(metric, Metric) for metric in metrics.values())
    _require(right, f"metrics of torchmetrics from {name}.metrics", ", ".join(map(_kind, metrics.values())))
    predicted = objective.predicted(outputs)
    got = f" {_words(predicted)} for targets of {_words(targets)}"
    for key, metric in metrics.items():
        what = f"predictions from {name}.predicted that its metric {key!r} takes"
        _called(metric.update, what, predicted, targets, got=got)
    sums = _called(objective.sums, f"{name}.sums to take outputs and targets of {given}", outputs, targets)
    right = isinstance(sums, Tensor) and sums.dtype == torch.float64 and sums.shape[:-1] == targets.shape[:1]
    _require(right, f"sums as float64 of shape ({len(targets)}, M) from {name}.sums", _words(sums))
    total = sums.sum(0)
    score = _called(objective.score, f"{name}.score to take sums of {_words(total)}", total)
    _require(_is_number(score), f"one score of the sums of a batch from {name}.score", _words(score))
    return metrics


def computed(objective: Objective, name: str, metric: Metric) -> Tensor:
    """Return the value of a metric of an objective.

    Raises:
        ConfigurationError: it is not one number, or the metric has no value for its samples.
    """
    what = f"one number from the metric {name!r} of {type(objective).__name__}"
    value: Tensor = _called(metric.compute, what)
    _require(isinstance(value, Tensor) and value.shape == (), what, _words(value))
    return value


def _called(function: Callable[..., Any], what: str, *given: Tensor, got: str = "") -> Any:
    """Return what a function returns.

    Raises:
        ConfigurationError: it raises an error; the message has what was expected and got, and the error's first line.
    """
    try:
        return function(*given)
    except ConfigurationError:
        raise
    except FAULTS as error:
        text = (str(error) or type(error).__name__).splitlines()[0].removesuffix(".")
        raise ConfigurationError(f"Expected {what} but got{got}: {text}") from error


def _require(holds: object, what: str, got: object) -> None:
    if not holds:
        raise ConfigurationError(f"Expected {what} but got {got}")


def _is_number(given: object) -> bool:
    return isinstance(given, Tensor) and given.shape == () and given.is_floating_point()


def _kind(given: object) -> str:
    return type(given).__name__


def _words(*given: object) -> str:
    return " and ".join(in_words(each) if isinstance(each, Tensor) else _kind(each) for each in given)
