"""The ranges of the numbers that a client reports, and the source of each range.

The server orders the work, so it knows the range of every number in advance. n is the client's number of training
samples by the server's data module, E the epochs of its order, s the number of samples that a loss was asked for, B the
batch size, D the entries of the global model, N the number of clients, and L :data:`LARGEST`.

============  ============  ===================  ======================================================================
number        job           range                source of the range
============  ============  ===================  ======================================================================
samples       training      1 to n               the server's data module; a node reads the same partition
passes        training      E * samples          the order
steps         training      1 to passes          a batch has a sample at least
passes        losses        min(s, n)            the order
passes        statistics    n                    one pass over all samples
loss          training      -L to L              a mean of losses in the model's dtype, which float32 holds
loss          losses        -L to L, or 0 to L   the same; an aggregator that takes powers of losses needs losses >= 0
entry         update        -sqrt(L) to sqrt(L)  norms and the server's Adam need its square, which is at most L
squared_norm  training      0 to D * L^2         D entries of a residual; 0 without error feedback
batches       statistics    c * b                c: calls of the layer in a pass, the median over the cohort; b: batches
                                                 of a pass, ceil(n / B), one less if the last one had one sample
mean          statistics    -sqrt(L) to sqrt(L)  the variance needs the channel's second moment, which is at most L
variance      statistics    0 to L               a sum of squares over the number of values minus one
client        hello         0 to N - 1           the server's data module
extras        training      as declared          the piece that reads an extra declares its range; no others are allowed
============  ============  ===================  ======================================================================

All other values in a report are checked elsewhere: :mod:`hetfl.wire` compares round, client, lengths, counts and
positions of a payload with the order, and the names of states must match a pattern of :mod:`hetfl.flower.states`.

**Sums stay finite.** A sum over 10^9 clients of a loss times 10^12 samples is at most 4e59, and one of squared norms of
10^12 entries is at most 2e98; float64 ends at 1.8e308.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from hetfl.printable import printable
from hetfl.types import Range, Report

LARGEST = torch.finfo(torch.float32).max
"""L: the largest number of float32. Models are sent in float32, or with values that should stay below this number."""


ROOT = math.sqrt(LARGEST)
"""sqrt(L)."""


Ranges = Mapping[str, Range]

ENTRY = Range(-ROOT, ROOT, "for an entry of an update")
"""Range of each entry of an update, uncompressed ones included."""


def training_ranges(samples: int, epochs: int, reported: int) -> Ranges:
    """Return the ranges of the numbers in a training report.

    Args:
        samples: n.
        epochs: E.
        reported: the number of samples in the client's report.
    """
    passes = epochs * reported
    return {
        "samples": Range(1, samples, "samples"),
        "passes": Range(passes, passes, "passes over its samples"),
        "steps": Range(1, passes, "steps"),
        "loss": Range(-LARGEST, LARGEST, "for a loss"),
    }


def residual_ranges(entries: int, keeps: bool) -> Ranges:
    """Return the range of the squared norm of a client's residual.

    Args:
        entries: D.
        keeps: whether there is error feedback.
    """
    return {"squared_norm": Range(0, entries * LARGEST**2 if keeps else 0, "for a squared norm")}


def pass_ranges(samples: int, asked: int | None = None) -> Ranges:
    """Return the range of the number of samples in a single pass, for losses and statistics.

    Args:
        samples: n.
        asked: s; None: all.
    """
    passes = samples if asked is None else min(asked, samples)
    return {"passes": Range(passes, passes, "passes over its samples")}


def losses_ranges(from_zero: bool) -> Ranges:
    """Return the range of a loss that the server asked for.

    Args:
        from_zero: whether the loss must be at least 0, for an aggregator that takes powers of losses.
    """
    return {"loss": Range(0 if from_zero else -LARGEST, LARGEST, "for a loss")}


def statistics_ranges() -> Ranges:
    """Return the ranges of a channel's mean and variance, averaged over a client's batches."""
    return {
        "mean": Range(-ROOT, ROOT, "for a mean"),
        "variance": Range(0, LARGEST, "for a variance"),
    }


def number_of_batches(samples: int, batch_size: int) -> int:
    """Return the number of batches of one pass; a last batch of one sample joins the batch before it.

    >>> [number_of_batches(samples, 10) for samples in (1, 10, 11, 12, 20, 21, 22)]
    [1, 1, 1, 2, 2, 2, 3]
    """
    joined = batch_size > 1 and samples > batch_size and samples % batch_size == 1
    return math.ceil(samples / batch_size) - joined


def violation(ranges: Ranges, numbers: object) -> str:
    """Return text about the first number that is out of its range; empty if there is none.

    Args:
        ranges: by name.
        numbers: an object with the numbers as attributes of these names.
    """
    return _first({name: getattr(numbers, name) for name in ranges}, ranges)


def within_ranges(report: Report, samples: int, epochs: int, extras: Ranges) -> tuple[Report, str]:
    """Return a client's report, and text about the first number in it that is out of its range; empty if there is none.

    If a number is out of its range, the returned report has loss 0; its passes are 0 too, unless samples and passes are
    in their ranges, so that no cost is charged for an unknown number of passes.

    Args:
        report: of a client's training.
        samples: n.
        epochs: E.
        extras: the ranges of the extra numbers that pieces declare.
    """
    ranges = training_ranges(samples, epochs, report.samples)
    wrong = violation(ranges, report)
    if not wrong and set(report.extras) != set(extras):
        wrong = printable(f"Expected extras {sorted(extras)} but got {sorted(report.extras)}")
    wrong = wrong or _first(report.extras, extras)
    if not wrong:
        return report, ""
    known = report.samples in ranges["samples"] and report.passes in ranges["passes"]
    return replace(report, loss=0.0, passes=report.passes if known else 0), wrong


def _first(values: Mapping[str, float], ranges: Ranges) -> str:
    for name, range in ranges.items():
        if values[name] not in range:
            return printable(f"Expected {range} but got {values[name]}")
    return ""
