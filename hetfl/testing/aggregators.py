"""The check of the contract of aggregators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hetfl.aggregators import Aggregator
from hetfl.aggregators.base import check_step
from hetfl.entries import add_holders
from hetfl.errors import RefusedUpdate
from hetfl.layout import Index, IndexEntry
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.testing.rules import check_settings, factory, random, require, same, through_a_file
from hetfl.types import Report
from hetfl.updates import DenseUpdate, SparseUpdate, Update

SHAPES = {"kernel": (4, 3, 2, 2), "bias": (4,), "scale": (), "unheld": (2,), "running_mean": (3,)}
"""Shapes of the global tensors; the last tensor is a buffer, which is sent in the exact block."""
EXACT = 2
"""Number of entries of the buffer that a client holds."""
Cohort = list[tuple[Update, Part, Report]]


def check_aggregator(aggregator: Aggregator | Callable[[], Aggregator]) -> None:
    """Check that an aggregator follows its contract.

    - It returns a step and the holders of each tensor, in the shape of the tensor. Holders are 0 exactly at entries
      that no client holds, and the step is 0 there, for parts with leading blocks, positions and masks.
    - An entry that a sparse update leaves out counts as 0, or the update is refused if ``takes_sparse`` is false. The
      step of the float buffers follows the exact blocks, and that of the parameters the vectors.
    - A round depends on earlier rounds only through the state. A saved and loaded state continues identically.
    - It does not modify updates or global tensors.

    Args:
        aggregator: an object, or a function that makes new objects.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    make = factory(aggregator, Aggregator)
    check_settings(make())
    for masks in (False, True):
        for dtype in (torch.float32, torch.float64):
            _check_round(make, cohort(0, masks, dtype), dtype)
    _check_sparse(make)
    _check_state(make)


def cohort(seed: int, masks: bool, dtype: torch.dtype = torch.float64) -> Cohort:
    """Return the updates of a round, for leading blocks, positions and, with ``masks``, masks."""
    taken: Cohort = []
    held_rows: list[slice | Tensor] = [slice(0, 4), slice(0, 2), torch.tensor([0, 2]), slice(0, 2)]
    for client, rows in enumerate(held_rows):
        kernel: IndexEntry = (rows, slice(0, 1 + client % 3), slice(0, 2), slice(0, 2))
        index: Index = {"kernel": kernel, "bias": (rows,), "scale": (), "running_mean": (slice(0, EXACT),)}
        part = Part(index)
        if masks and client % 2:
            held_D = torch.rand(part.layout.size, generator=random(seed + client)) < 0.5
            held_D[-EXACT - 1 :] = True  # the scale and the buffer are whole
            part = Part(index, held_D)
        vector = torch.randn(part.size, generator=random(100 * seed + client), dtype=torch.float64).to(dtype)
        report = Report(client, "a", 3 + client, 0.5, lr=0.1, initial_loss=1.0 + client, weight=1.0 + client)
        report = replace(report, steps=2 + client)
        taken.append((DenseUpdate(vector[:-EXACT], exact=vector[-EXACT:]), part, report))
    return taken


def ready(make: Callable[[], Aggregator], state: dict[str, Any] | None = None) -> Aggregator:
    """Return an aggregator after setup, and with a state after loading it, before its next round."""
    aggregator = make()
    parameters = {name: torch.zeros(shape) for name, shape in SHAPES.items() if name != "running_mean"}
    aggregator.setup(Facts(sizes=(3, 4, 5, 6), levels=("a",), rounds=3, parameters=parameters))
    if state is not None:
        aggregator.load_state_dict(state)
    aggregator.begin()
    return aggregator


def play(aggregator: Aggregator, updates: Cohort, round: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the steps and holders of a round, after a check of their shapes.

    Raises:
        AssertionError: the aggregator does not take an update, or changes the global tensors.
    """
    dtype = updates[0][0].values.dtype
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
    aggregator.begin_round(round, 0.1)
    aggregator.reset(tensors)
    for update, part, report in updates:
        _update(aggregator, update, part, report)
    steps, holders = check_step(aggregator.compute(), tensors, type(aggregator).__name__)
    aggregator.end_round(round)
    untouched = not any(bool(tensor.any()) for tensor in tensors.values())
    require(untouched, f"{type(aggregator).__name__} to read the global tensors only", "one that it changed")
    copies: tuple[dict[str, Tensor], dict[str, Tensor]]
    copies = {k: steps[k].clone() for k in tensors}, {k: holders[k].clone() for k in tensors}
    return copies


def _update(aggregator: Aggregator, update: Update, part: Part, report: Report) -> None:
    try:
        aggregator.update(update, part, report)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        given = f"{len(update.to_dense())} entries, update.to_dense(), and an exact block of {EXACT}, update.exact"
        text = (str(error) or type(error).__name__).splitlines()[0]
        name = type(aggregator).__name__
        raise AssertionError(f"Expected {name}.update to take a vector of {given}, but got: {text}") from error


def _check_round(make: Callable[[], Aggregator], updates: Cohort, dtype: torch.dtype) -> None:
    aggregator, before = ready(make), [update.to_dense().clone() for update, _, _ in updates]
    name = type(aggregator).__name__
    steps, holders = play(aggregator, updates)
    kept = all(torch.equal(update.to_dense(), old) for (update, _, _), old in zip(updates, before, strict=True))
    require(kept, f"{name}.update to read the update only", "one that it changed")
    held = {key: torch.zeros(shape, dtype=dtype) for key, shape in SHAPES.items()}
    for _, part, _ in updates:
        add_holders(held, part)
    for key in SHAPES:
        apart = (holders[key] > 0) != (held[key] > 0)
        rule = f"holders above 0 exactly where a client holds an entry of {key!r} from {name}"
        require(not bool(apart.any()), rule, f"others at {int(apart.sum())} entries")
        stray = int(((held[key] == 0) & (steps[key] != 0)).sum())
        rule = f"a step of 0 where no client holds an entry of {key!r} from {name}"
        require(not stray, rule, f"other steps at {stray} entries")
        require(bool(steps[key].isfinite().all()), f"a finite step of {key!r} from {name}", "NaN or Inf")
    for key, change in (("kernel", (1.0, 0.0)), ("running_mean", (0.0, 1.0))):
        moved = play(ready(make), _moved(updates, *change))[0][key]
        what = "vectors, update.to_dense()" if key == "kernel" else "exact blocks, update.exact"
        got = "the same step of other ones" if bool(steps[key].any()) else "0 everywhere"
        require(not torch.equal(moved, steps[key]), f"a step of {key!r} that follows the {what}, from {name}", got)
    other = play(ready(make), updates)
    require(same(other, (steps, holders)), f"the same step of the same updates from two {name}", "another one")


def _moved(updates: Cohort, vector: float, exact: float) -> Cohort:
    """Return updates with numbers added to their vectors and exact blocks."""
    return [
        (DenseUpdate(update.to_dense() + vector, exact=update.exact + exact), part, report)
        for update, part, report in updates
    ]


def _check_sparse(make: Callable[[], Aggregator]) -> None:
    dense = cohort(1, masks=False)
    sparse: Cohort = []
    for number, (update, part, report) in enumerate(dense):
        values = update.values * (torch.arange(len(update.values)) % 2 == number % 2)
        where = values.nonzero().flatten()
        dense[number] = (DenseUpdate(values, exact=update.exact), part, report)
        sparse.append((SparseUpdate(values[where], where, len(values), exact=update.exact), part, report))
    if not make().takes_sparse:
        _check_sparse_refusal(ready(make), sparse)
        return
    (expected, counts), (steps, holders) = play(ready(make), dense), play(ready(make), sparse)
    close = all(torch.allclose(steps[key], expected[key], rtol=1e-6, atol=1e-12) for key in SHAPES)
    name = type(make()).__name__
    require(close, f"entries that a sparse update leaves out to count as 0 for {name}", "another step")
    require(same(holders, counts), f"holders of what a client holds, sent or not, from {name}", "others")


def _check_sparse_refusal(aggregator: Aggregator, updates: Cohort) -> None:
    aggregator.reset({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    try:
        aggregator.update(*updates[0])
    except RefusedUpdate:
        return
    name = type(aggregator).__name__
    raise AssertionError(f"Expected {name}, with takes_sparse false, to refuse a sparse update but it took one")


def _check_state(make: Callable[[], Aggregator]) -> None:
    first, name = ready(make), type(make()).__name__
    play(first, cohort(2, masks=False))
    again = ready(make, through_a_file(first.state_dict(), name))
    resumed, expected = (play(each, cohort(3, masks=False), 1) for each in (again, first))
    rule = f"{name} to continue from a saved state as without saving, and to forget in reset what is not in it"
    require(same(resumed, expected), rule, "another step")
    if not first.state_dict():
        fresh = play(ready(make), cohort(3, masks=False), 1)
        require(same(fresh, expected), f"{name} to forget in reset what is not in its state", "another step")
