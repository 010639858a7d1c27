"""Updates: their dense form and counts, against plain loops."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update, matrix_shape
from tests import wire_by_hand as by_hand
from tests.wire_cases import cases


def dense_by_hand(update: Update) -> list[float]:
    """Return every entry, computed separately."""
    values = update.values.tolist()
    if isinstance(update, SparseUpdate):
        sent = dict(zip(update.indices.tolist(), values, strict=True))
        return [sent.get(entry, 0.0) for entry in range(update.size)]
    if not isinstance(update, LowRankUpdate):
        return values
    dense: list[float] = []
    for shape, rank in zip(update.layout.shapes.values(), update.ranks, strict=True):
        rows, columns = matrix_shape(shape)
        if rank == 0:
            dense, values = dense + values[: rows * columns], values[rows * columns :]
            continue
        left, right = values[: rows * rank], values[rows * rank : (rows + columns) * rank]
        values = values[(rows + columns) * rank :]
        for row in range(rows):
            for column in range(columns):
                dense.append(sum(left[row * rank + r] * right[column * rank + r] for r in range(rank)))
    assert not values
    return dense


@settings(max_examples=300)
@given(cases())
def test_dense_form_of_an_update_equals_a_loop(case: tuple[Update, Layout, bool]) -> None:
    update, layout, _ = case
    if isinstance(update, LowRankUpdate):
        update = update.with_values(update.values.double())
    dense = update.to_dense()
    assert dense.shape == (update.size,) == (layout.size,)
    assert dense.dtype == update.values.dtype
    torch.testing.assert_close(dense.double(), torch.tensor(dense_by_hand(update), dtype=torch.float64))
    p_D = torch.arange(update.size, dtype=torch.float64)
    torch.testing.assert_close(update.left_of(p_D), p_D - dense.double())
    assert update.num_sent == len(update.values)


@given(cases())
def test_number_of_values_per_tensor_equals_a_loop(case: tuple[Update, Layout, bool]) -> None:
    update, layout, _ = case
    counts = update.num_sent_per_tensor(layout).tolist()
    assert sum(counts) == update.num_sent
    if isinstance(update, SparseUpdate):
        starts = [*layout.offsets, layout.size]
        indices = update.indices.tolist()
        want = [sum(start <= index < stop for index in indices) for start, stop in pairwise(starts)]
        assert counts == want
    with pytest.raises(ValueError, match=f"vector of {layout.size} entries but got one of {layout.size + 1}"):
        update.num_sent_per_tensor(Layout({**layout.shapes, "more": ()}))


@pytest.mark.parametrize("counts", [(4,), (0, 0, 1), (2, 0, 3)])
def test_every_section_of_a_seeded_update_has_its_own_seed(counts: tuple[int, ...]) -> None:
    sizes = (9,) if len(counts) == 1 else (3, 0, 6)
    for seed in (0, 2**64 - 1):  # the second section's seed is then 0
        want, offset = [], 0
        for section, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            want += [offset + place for place in by_hand.chosen(size, count, (seed + section) % 2**64)]
            offset += size
        assert SeededUpdate.positions(seed, sizes, counts).tolist() == want


def test_with_values_drops_the_codes_and_keeps_the_rest() -> None:
    exact = torch.ones(2)
    update = SparseUpdate(torch.ones(2), torch.tensor([0, 3]), 5, exact=exact).with_values(torch.zeros(2))
    assert isinstance(update, SparseUpdate)
    assert (update.codes, update.length, update.exact) == (None, 5, exact)
    assert DenseUpdate(torch.ones(2)).with_exact(exact).exact is exact
