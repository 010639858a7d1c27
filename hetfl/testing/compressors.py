"""The check of the contract of compressors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hetfl.compression import Compressor, ErrorFeedback
from hetfl.compression.base import Context
from hetfl.errors import RefusedUpdate
from hetfl.layout import Layout
from hetfl.testing.rules import check_settings, factory, random, require, same, through_a_file
from hetfl.updates import SparseUpdate, Update
from hetfl.wire import Expected, decode

LAYOUTS = {
    0: Layout({"none": (0,)}),
    1: Layout({"scale": ()}),
    5: Layout({"v": (5,)}),
    50: Layout({"w": (5, 3, 3), "b": (5,)}),
    1000: Layout({"conv": (10, 9, 3, 3), "conv.bias": (10,), "linear": (10, 17), "linear.bias": (10,)}),
}
"""The tensor layout of the test vectors, by length."""


def check_compressor(compressor: Compressor | Callable[[], Compressor]) -> None:
    """Check that a compressor follows its contract.

    - The update has the length and dtype of the vector, for vectors of any length, with and without a layout. Sparse
      indices rise strictly, and the compressor declares by ``sparse`` that updates may leave entries out. The vector is
      not modified.
    - The update depends only on the vector, the context and the state.
    - With error feedback the update and the residual add up to the vector.
    - The state changes only by accepted updates. A saved and loaded state continues identically.

    Args:
        compressor: an object, or a function that makes new objects.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    make = factory(compressor, Compressor)
    check_settings(make())
    for vector in vectors():
        for dtype in (torch.float32, torch.float64):
            for layout in (None, LAYOUTS[vector.numel()]):
                _check_update(make, vector.to(dtype), layout)
        if not make().expands:
            _check_residual(make, vector)
    _check_refusals(make)
    _check_state(make)


def vectors() -> list[Tensor]:
    """Return vectors that are hard for compressors: empty, constant, zero, of all magnitudes, with denormal entries."""
    wide = torch.randn(1000, generator=random(1)) * torch.logspace(-30, 30, 1000)
    small = torch.tensor([-0.0, 1e-45, -1e-40, 0.0, 2.0])
    plain = [torch.zeros(0), torch.tensor([-0.7]), torch.zeros(50), torch.full((50,), -0.25), small]
    return [*plain, torch.randn(1000, generator=random(0)), torch.arange(1000.0) / 500 - 1, wide]


def _check_update(make: Callable[[], Compressor], vector: Tensor, layout: Layout | None) -> None:
    name, before, size = type(make()).__name__, vector.clone(), vector.numel()
    updates = [_compressed(make(), vector, layout, 0) for _ in range(2)]
    require(torch.equal(vector, before), f"{name}.apply to leave its vector as it is", "it changed")
    dense = updates[0].to_dense()
    require(dense.shape == vector.shape, f"an update of shape ({size},) from {name}", tuple(dense.shape))
    require(dense.dtype == vector.dtype, f"an update of {vector.dtype}, as the vector, from {name}", dense.dtype)
    require(bool(dense.isfinite().all()), f"finite values from {name}", "NaN or Inf")
    sent, counts = updates[0].num_sent, updates[0].num_sent_per_tensor(LAYOUTS[size])
    require(sent <= max(size, 1), f"at most {size} values from {name}", sent)
    require(int(counts.sum()) == sent, f"{sent} values in the tensors of an update of {name}", int(counts.sum()))
    if isinstance(updates[0], SparseUpdate):
        _check_indices(name, updates[0])
        require(make().sparse, f"{name}.sparse to be true, as updates leave entries out", "false")
    alike = same(dense, updates[1].to_dense())
    require(alike, f"the same update of the same vector, generator and state from {name}", "another one")


def _compressed(compressor: Compressor, vector: Tensor, layout: Layout | None, seed: int, lr: float = 0.1) -> Update:
    """Return the update of a vector of a client that began with random values."""
    context = Context(lr, layout, None, random(seed), start=partial(_started, vector))
    return compressor.compress_in(vector, context)


def _started(vector: Tensor) -> Tensor:
    return torch.randn(vector.numel(), generator=random(vector.numel())).to(vector)


def _check_indices(name: str, update: SparseUpdate) -> None:
    indices = update.indices
    require(indices.dtype == torch.int64, f"indices of torch.int64 from {name}", indices.dtype)
    rising = bool((indices.diff() > 0).all()) and (not len(indices) or 0 <= int(indices[0]) <= int(indices[-1]))
    within = not len(indices) or int(indices[-1]) < update.length
    require(rising and within, f"strictly rising indices within the vector from {name}", indices[:8].tolist())
    require(indices.shape == update.values.shape, f"a value for each index from {name}", tuple(update.values.shape))


def _check_residual(make: Callable[[], Compressor], vector: Tensor) -> None:
    feedback, layout = ErrorFeedback(make()), LAYOUTS[vector.numel()]
    index = {tensor: tuple(slice(0, size) for size in shape) for tensor, shape in layout.shapes.items()}
    before = torch.zeros_like(vector)
    for round in range(2):
        chance, start = random(round), partial(_started, vector)
        message = feedback.prepare(5, vector, index=index, round=round, lr=0.1, start=start, generator=chance)
        update = decode(message.payload, Expected(round, 5, vector.numel(), layout=layout))
        p_D, u_D, left_D = vector + before, update.to_dense(), message.residual_D
        assert left_D is not None
        rounding = 2**-23 * torch.maximum(p_D.abs(), u_D.abs())
        close = bool(((u_D + left_D - p_D).abs() <= rounding).all())
        name = type(feedback.compressor).__name__
        require(close, f"what {name} sends and what is left to add up to the vector", "another sum")
        feedback.accept(message, update)
        feedback.end_round(round)
        before = left_D


def _check_refusals(make: Callable[[], Compressor]) -> None:
    name = type(make()).__name__
    for vector, error in ((torch.ones(2, 3), ValueError), (torch.tensor([1.0, torch.nan]), RefusedUpdate)):
        try:
            make().compress(vector, lr=0.1)
        except error:
            continue
        raise AssertionError(f"Expected {name}.compress to refuse a vector of {vector.tolist()} but got an update")


def _check_state(make: Callable[[], Compressor]) -> None:
    first, layout, name = make(), Layout({"w": (10, 19), "b": (10,)}), type(make()).__name__

    def update(of: Compressor, seed: int, lr: float = 0.1) -> Update:
        return _compressed(of, torch.randn(200, generator=random(seed)), layout, seed, lr)

    fresh, refused = make(), make()
    update(refused, 1)
    refused.end_round()
    alike = same(update(refused, 2).to_dense(), update(fresh, 2).to_dense())
    require(alike, f"{name} to learn only from accepted updates, by observe", "a change by a refused update")
    for round in range(3):
        first.begin_round(0.1)
        for client in range(3):
            first.observe(update(first, 10 * round + client), layout)
        if round < 2:
            first.end_round()
        again = make()
        again.load_state_dict(through_a_file(first.state_dict(), name))
        require(same(again.state_dict(), first.state_dict()), f"{name} to load the state that it saved", "another one")
        alike = same(update(again, 99, 0.05).to_dense(), update(first, 99, 0.05).to_dense())
        require(alike, f"{name} to continue from a saved state as without saving", "another update")
