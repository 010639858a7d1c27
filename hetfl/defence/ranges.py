"""The numbers that a client reports: the range of each, and where the range comes from.

The server asked for the work, so it knows the range of every number before the number comes. n is the client's number
of training samples by the server's own data module, E the epochs of its order, s the samples that it was asked about,
B the batch size, D the entries of the global model, N the number of clients, and L :data:`LARGEST`.

============  ============  ===================  ======================================================================
number        of            range                where the range comes from
============  ============  ===================  ======================================================================
samples       training      1 to n               the server's data module; a node reads the same partition
passes        training      E * samples          the order
steps         training      1 to passes          a batch has a sample at least
passes        losses        min(s, n)            the order
passes        statistics    n                    one pass over all samples
loss          training      -L to L              a mean of losses in the model's dtype, which float32 holds
loss          losses        -L to L, or 0 to L   the same; an aggregator that takes powers of losses needs them from 0
entry         update        -sqrt(L) to sqrt(L)  its square, which norms and the server's Adam need, is at most L
squared_norm  training      0 to D * L^2         D entries of a residual; 0 without error feedback
batches       statistics    c * ceil(n / B)      c: how often a pass calls the layer, the median over the cohort
mean          statistics    -sqrt(L) to sqrt(L)  the second moment of a channel, which the variance needs, is at most L
variance      statistics    0 to L               a sum of squares over the number of values less one
client        hello         0 to N - 1           the server's data module
extras        training      as declared          a piece that reads one declares its range; exactly these are reported
============  ============  ===================  ======================================================================

Nothing else that a client reports is a free number: round, client, lengths, counts and positions of a payload are
compared with the order by :mod:`hetfl.wire`, names of states with a pattern by :mod:`hetfl.flower.states`.

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
"""L: the largest number of float32, in which models of all precisions are sent, or which theirs should stay below."""


ROOT = math.sqrt(LARGEST)
"""sqrt(L)."""


Ranges = Mapping[str, Range]

ENTRY = Range(-ROOT, ROOT, "for an entry of an update")
"""Of each entry of an update, those that travel exactly included."""


def training_ranges(samples: int, epochs: int, reported: int) -> Ranges:
    """Return the ranges of what a client reports of its training.

    Args:
        samples: n.
        epochs: E.
        reported: number of samples as the client reports it.
    """
    passes = epochs * reported
    return {
        "samples": Range(1, samples, "samples"),
        "passes": Range(passes, passes, "passes over its samples"),
        "steps": Range(1, passes, "steps"),
        "loss": Range(-LARGEST, LARGEST, "for a loss"),
    }


def residual_ranges(entries: int, keeps: bool) -> Ranges:
    """Return the range of what a client reports of its residual.

    Args:
        entries: D.
        keeps: whether there is error feedback.
    """
    return {"squared_norm": Range(0, entries * LARGEST**2 if keeps else 0, "for a squared norm")}


def pass_ranges(samples: int, asked: int | None = None) -> Ranges:
    """Return the range of what a client reports that passes some of its samples through a net once.

    Args:
        samples: n.
        asked: s; None: all.
    """
    passes = samples if asked is None else min(asked, samples)
    return {"passes": Range(passes, passes, "passes over its samples")}


def losses_ranges(from_zero: bool) -> Ranges:
    """Return the range of what a client reports that is asked for a loss.

    Args:
        from_zero: whether something takes powers of losses.
    """
    return {"loss": Range(0 if from_zero else -LARGEST, LARGEST, "for a loss")}


def statistics_ranges() -> Ranges:
    """Return the ranges of a channel's mean and variance, averaged over a client's batches."""
    return {
        "mean": Range(-ROOT, ROOT, "for a mean"),
        "variance": Range(0, LARGEST, "for a variance"),
    }


def number_of_batches(samples: int, batch_size: int) -> int:
    """Return the batches of one pass: a last one of a single sample joins the batch before it.

    >>> [number_of_batches(samples, 10) for samples in (1, 10, 11, 12, 20, 21, 22)]
    [1, 1, 1, 2, 2, 2, 3]
    """
    joined = batch_size > 1 and samples > batch_size and samples % batch_size == 1
    return math.ceil(samples / batch_size) - joined


def violation(ranges: Ranges, numbers: object) -> str:
    """Return in words the first of some numbers that is out of its range; empty if there is none.

    Args:
        ranges: by name.
        numbers: has the numbers as attributes of these names.
    """
    return _first({name: getattr(numbers, name) for name in ranges}, ranges)


def within_ranges(report: Report, samples: int, epochs: int, extras: Ranges) -> tuple[Report, str]:
    """Return a client's report, and in words the first number in it that is out of its range; empty if there is none.

    The loss of such a report is 0, and its passes are unless their number is in its range: what they cost is unknown.

    Args:
        report: of a client's training.
        samples: n.
        epochs: E.
        extras: the ranges of the further numbers that pieces declare.
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
