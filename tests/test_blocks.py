"""Blocks of a client against global arrays, and sums of updates against a loop, for both storage forms."""

from __future__ import annotations

import math
import pickle  # noqa: TID251 -- users may pickle stores: joblib and spawned processes do
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl import entries
from hetfl.aggregators.sums import FlatSums, TensorSums
from hetfl.layout import Index, IndexEntry, Layout, entry_shape
from hetfl.part import Part, index_layout
from hetfl.store import MemoryStore
from hetfl.store.blocks import LAYOUTS, WHOLE, Blocks
from hetfl.updates import DenseUpdate, SparseUpdate, Update

SHAPES = {"conv": (4, 3, 2), "scale": (), "head": (5, 4), "bias": (5,)}


@st.composite
def indices(draw: st.DrawFn) -> Part:
    """Draw some of the tensors, in any order, with leading blocks, other slices and positions."""
    index: dict[str, IndexEntry] = {}
    for name in draw(st.permutations(list(SHAPES)))[: draw(st.integers(1, len(SHAPES)))]:
        index[name] = tuple(draw(parts(size)) for size in SHAPES[name])
    return Part(index)


@st.composite
def parts(draw: st.DrawFn, size: int) -> slice | Tensor:
    kind = draw(st.sampled_from(["whole", "leading", "slice", "positions"]))
    if kind == "positions":
        return torch.tensor(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))))
    start = draw(st.integers(0, size - 1)) if kind == "slice" else 0
    return slice(start, size if kind == "whole" else draw(st.integers(start + 1, size)))


def read(arrays: Mapping[str, np.ndarray], index: Index) -> np.ndarray:
    return np.concatenate([arrays[name][mesh(entry)].ravel() for name, entry in index.items()])


def write(arrays: Mapping[str, np.ndarray], index: Index, values_D: np.ndarray, *, add: bool = False) -> None:
    position = 0
    for name, entry in index.items():
        shape = entry_shape(entry)
        values = values_D[position : position + math.prod(shape)].reshape(shape)
        arrays[name][mesh(entry)] = values + (arrays[name][mesh(entry)] if add else 0)
        position += values.size


def mesh(entry: IndexEntry) -> tuple[np.ndarray, ...]:
    return np.ix_(*[np.arange(p.start, p.stop) if isinstance(p, slice) else p.numpy() for p in entry])


@pytest.fixture(params=["in one call", "by tensor"], scope="module", autouse=True)
def short(request: pytest.FixtureRequest) -> Iterator[None]:
    """Read short vectors through positions, and then treat them as long ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "SHORT", entries.SHORT if request.param == "in one call" else 0)
        yield


@settings(max_examples=150)
@given(st.lists(st.tuples(indices(), st.sampled_from([1.0, 0.5, 0.0])), min_size=1, max_size=8), st.integers(0, 99))
def test_written_values_are_read_back_at_every_index(steps: list[tuple[Part, float]], seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    store, like = MemoryStore(), torch.empty(0, dtype=torch.float64)
    for round, (index, outside) in enumerate(steps):
        values_D = random.normal(size=index_layout(index).size)
        for array in arrays.values():
            array *= outside
        write(arrays, index, values_D)
        given_D = torch.from_numpy(values_D)
        written = store.write(0, index, given_D, round, outside=outside)
        given_D.fill_(math.nan)  # its memory may be reused
        for read_index in (index, *(earlier for earlier, _ in steps)):
            got = store.read(0, read_index, like)
            assert got is not None
            assert np.array_equal(got.numpy(), read(arrays, read_index))
        for name, block in written.items():
            inside = tuple(slice(size) for size in block.shape)
            assert np.array_equal(block.numpy(), arrays[name][inside])
            assert np.count_nonzero(arrays[name]) == np.count_nonzero(arrays[name][inside])
        whole = math.fsum(float(x) ** 2 for array in arrays.values() for x in array.ravel())
        assert written.squared_norm() == pytest.approx(whole, rel=1e-14)


def test_a_store_reuses_its_own_memory_and_not_the_callers() -> None:
    corner, both = Part({"w": (slice(0, 2),)}), Part({"w": (slice(0, 4),)})
    given = {"w": torch.ones(4)}
    store, resumed = MemoryStore(), MemoryStore()
    store.save(0, given, 0)
    state = store.state_dict()
    store.write(0, corner, torch.zeros(2), 1)
    assert given["w"].tolist() == [1, 1, 1, 1]
    resumed.load_state_dict(state)
    resumed.write(0, both, torch.full((4,), 7.0), 1)
    assert given["w"].tolist() == state["blocks"][0]["w"].tolist() == [1, 1, 1, 1]
    place = store.load(0)["w"].data_ptr()
    for index, values, outside, expected in [
        (corner, [2.0, 3.0], 0.5, [2, 3, 0.5, 0.5]),
        (both, [4.0, 5.0, 6.0, 7.0], 0.0, [4, 5, 6, 7]),
        (corner, [8.0, 9.0], 1.0, [8, 9, 6, 7]),
    ]:
        assert store.write(0, index, torch.tensor(values), 2, outside=outside)["w"].tolist() == expected
        assert store.load(0)["w"].data_ptr() == place
    other, copied = MemoryStore(), MemoryStore()
    pickled = pickle.loads(pickle.dumps(store))  # noqa: S301 -- our own bytes
    other.save(0, store.load(0), 2)
    other.write(0, corner, torch.tensor([1.0, 1.0]), 3)
    copied.load_state_dict(store.state_dict())
    assert store.load(0)["w"].tolist() == [8, 9, 6, 7]
    store.write(0, corner, torch.tensor([2.0, 2.0]), 3)
    assert copied.load(0)["w"].tolist() == [8, 9, 6, 7]
    pickled.write(0, corner, torch.tensor([3.0, 3.0]), 3)
    assert pickled.load(0)["w"].tolist() == pickled.read(0, both, torch.ones(0)).tolist() == [3, 3, 6, 7]


def test_a_read_vector_can_be_written_elsewhere_and_a_wrong_length_is_refused() -> None:
    first, last, whole = (Part({"w": (slice(*ends),)}) for ends in ((0, 3), (1, 4), (0, 4)))
    store = MemoryStore()
    store.write(0, whole, torch.tensor([1.0, 2.0, 3.0, 4.0]), 0)
    with pytest.raises(ValueError, match=r"Expected 3 entries of client 0 but got shape \(2,\)"):
        store.write(0, first, torch.ones(2), 1, outside=0.5)
    assert store.load(0)["w"].tolist() == [1, 2, 3, 4]
    read = store.read(0, first, torch.ones(0))
    assert read is not None
    store.write(0, last, read, 1, outside=10)
    assert store.load(0)["w"].tolist() == [10, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [0, WHOLE])
def test_a_norm_does_not_depend_on_the_order_of_the_blocks(
    whole: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm also does not depend on memory offsets, for a short vector and for one treated as long."""
    monkeypatch.setattr("hetfl.store.blocks.WHOLE", whole)
    random = torch.Generator().manual_seed(0)
    for size in range(200, 230):
        blocks = {name: torch.randn(size + at, generator=random, dtype=dtype) for at, name in enumerate("abcd")}
        blocks["e"] = torch.empty(0, dtype=dtype)
        norms = {
            Blocks.of({name: blocks[name] for name in order}, dtype).squared_norm()
            for order in ("abcde", "edcba", "bdaec")
        }
        assert len(norms) == 1
        assert norms.pop() == pytest.approx(sum(float(block.double().square().sum()) for block in blocks.values()))


def test_cached_block_positions_are_limited() -> None:
    index = Part({"a": (slice(0, 1),)})
    for rows in (*range(1, 20), *range(1, 20)):
        block = torch.arange(float(rows))
        assert Blocks(Layout({"a": (rows,)}), block).at(index).tolist() == [0.0]
    assert len(index.derived("blocks", dict)) == LAYOUTS


@settings(max_examples=150)
@given(st.lists(st.tuples(indices(), st.booleans(), st.booleans()), min_size=1, max_size=6), st.integers(0, 99))
def test_sums_equal_a_loop(clients: list[tuple[Part, bool, bool]], seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors = {name: torch.full(shape, 7.0, dtype=torch.float64) for name, shape in SHAPES.items()}
    every = [FlatSums(tensors), TensorSums(tensors)]
    for _ in range(2):  # values of the first round must be cleared
        arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        for sums in every:
            sums.clear()
        for index, sparse, exact in clients:
            values_D, weight = random.normal(size=index_layout(index).size), random.uniform(1, 3)
            exact_size = index_layout(index).sizes[-1] if exact and len(index) > 1 else 0
            update = update_of(values_D, exact_size, sparse)
            write(arrays, index, weight * np.concatenate([update.to_dense(), update.exact]), add=True)
            for sums in every:
                sums.add(update, index, weight)
        for sums in every:
            assert sums.fit(tensors)
            for name, total in sums.tensors().items():
                assert np.allclose(total.numpy(), arrays[name], rtol=0, atol=1e-12)


def update_of(values_D: np.ndarray, exact_size: int, sparse: bool) -> Update:
    vector_D, exact = torch.from_numpy(values_D).split([values_D.size - exact_size, exact_size])
    if not sparse:
        return DenseUpdate(vector_D, exact=exact)
    sent = torch.arange(0, len(vector_D), 3)
    return SparseUpdate(vector_D[sent], sent, len(vector_D), exact=exact)
