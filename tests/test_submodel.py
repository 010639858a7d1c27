"""Index functions against plain NumPy indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetfl.entries import gather_flat
from hetfl.errors import ConfigurationError
from hetfl.layout import IndexEntry
from hetfl.part import index_layout
from hetfl.submodel import add, extent, prefix_index, put, relative, take


@st.composite
def entries(draw: st.DrawFn) -> tuple[tuple[int, ...], IndexEntry]:
    """Draw a tensor's shape, and an entry of slices and sorted positions in it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    parts: list[slice | torch.Tensor] = []
    for size in shape:
        if draw(st.booleans()):
            start = draw(st.integers(0, size))
            parts.append(slice(start, draw(st.integers(start, size))))
        else:
            parts.append(torch.tensor(sorted(draw(st.sets(st.integers(0, size - 1)))), dtype=torch.long))
    return shape, tuple(parts)


def mesh(entry: IndexEntry) -> tuple[np.ndarray, ...]:
    """Return NumPy's open mesh of an entry."""
    return np.ix_(*[np.arange(p.start, p.stop) if isinstance(p, slice) else p.numpy() for p in entry])


@given(entries())
def test_take_put_add_equal_numpy(case: tuple[tuple[int, ...], IndexEntry]) -> None:
    shape, entry = case
    array = np.arange(float(np.prod(shape))).reshape(shape)
    tensor = torch.from_numpy(array.copy())
    assert np.array_equal(take(tensor, entry).numpy(), array[mesh(entry)])
    values = torch.rand(array[mesh(entry)].shape, dtype=torch.float64)

    added = array.copy()
    added[mesh(entry)] += 3.0 * values.numpy()
    add(tensor, entry, values, 3.0)
    assert np.allclose(tensor.numpy(), added, rtol=0, atol=1e-12)

    added[mesh(entry)] += 2.0
    add(tensor, entry, 1.0, 2.0)
    assert np.allclose(tensor.numpy(), added, rtol=0, atol=1e-12)

    added[mesh(entry)] = values.numpy()
    put(tensor, entry, values)
    assert np.array_equal(tensor.numpy()[mesh(entry)], values.numpy())
    assert np.allclose(tensor.numpy(), added, rtol=0, atol=1e-12)


@given(entries())
def test_the_extent_is_the_smallest_block_around_the_entry(case: tuple[tuple[int, ...], IndexEntry]) -> None:
    _, entry = case
    for size, positions in zip(extent(entry), mesh(entry), strict=True):
        flat = positions.ravel()
        if len(flat):
            assert size == flat.max() + 1


@given(entries(), st.data())
def test_relative_entry_reads_the_same_values_from_the_part(
    case: tuple[tuple[int, ...], IndexEntry], data: st.DataObject
) -> None:
    shape, base = case
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    inner = []
    for part in base:
        positions = list(range(part.start, part.stop)) if isinstance(part, slice) else part.tolist()
        inner.append(torch.tensor([p for p in positions if data.draw(st.booleans())], dtype=torch.long))
    entry = tuple(inner)
    assert torch.equal(take(take(tensor, base), relative(entry, base)), take(tensor, entry))


def test_relative_refuses_entries_outside_the_part() -> None:
    with pytest.raises(ValueError, match="inside"):
        relative((slice(0, 3),), (slice(0, 2),))
    base = slice(2, 5)
    for outside in (slice(1, 4), slice(3, 6), torch.tensor([1, 3]), torch.tensor([3, 5])):
        with pytest.raises(ValueError, match=r"inside slice\(2, 5, None\)"):
            relative((outside,), (base,))
    assert relative((slice(2, 5),), (base,)) == (slice(0, 3),)
    assert relative((torch.tensor([2, 4]),), (base,))[0].tolist() == [0, 2]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="among"):
        relative((torch.tensor([1, 2]),), (torch.tensor([0, 2]),))


def test_a_flat_vector_is_ordered_by_tensor_name() -> None:
    tensors = {"w": torch.arange(12.0).view(3, 4), "b": torch.arange(3.0)}
    index = {"w": (torch.tensor([0, 2]), slice(0, 2)), "b": (slice(1, 3),)}
    flat = gather_flat(tensors, index)
    assert flat.tolist() == [0.0, 1.0, 8.0, 9.0, 1.0, 2.0]
    assert index_layout(index).views(flat)["w"].tolist() == [[0.0, 1.0], [8.0, 9.0]]
    assert index_layout(index).offsets == (0, 4)


def test_prefix_index_names_a_tensor_that_is_not_a_leading_block() -> None:
    whole = {"w": torch.zeros(4, 4)}
    assert prefix_index(whole, {"w": torch.zeros(2, 3)}, "b")["w"] == (slice(0, 2), slice(0, 3))
    with pytest.raises(ConfigurationError, match=r"'v'.*level b|level b.*'v'"):
        prefix_index(whole, {"v": torch.zeros(2)}, "b")
    with pytest.raises(ConfigurationError, match=r"'w' at level b.*\(4, 4\).*\(5, 4\)"):
        prefix_index(whole, {"w": torch.zeros(5, 4)}, "b")
    with pytest.raises(ConfigurationError, match="'w'"):
        prefix_index(whole, {"w": torch.zeros(4)}, "b")
