"""Updates of every kind for tests of the wire format: drawn ones, and a fixed one of each kind."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from hetfl.codes import Codes, Spacing, bits_of, bucket_sizes
from hetfl.layout import Layout
from hetfl.updates import DenseUpdate, LowRankUpdate, SeededUpdate, SparseUpdate, Update, matrix_shape
from hetfl.wire import Expected

ROUND, CLIENT = 3, 17
LAYOUT = Layout({"weight": (20, 10), "bias": (6,), "scale": ()})
WIDTHS = {torch.float16: 16, torch.float32: 32, torch.float64: 64}


def expect(update: Update, layout: Layout | None = None, **changes: object) -> Expected:
    """Return what a server expects that knows the sent update."""
    expected = Expected(
        ROUND, CLIENT, update.size, update.exact.numel(), update.values.dtype, update.exact.dtype, layout=layout
    )
    return replace(expected, **changes)  # type: ignore[arg-type]


def assert_same(got: object, want: object) -> None:
    """Compare two updates, or two blocks of codes, field by field."""
    assert type(got) is type(want)
    for name in (field.name for field in fields(want)):  # type: ignore[arg-type]
        one, other = getattr(got, name), getattr(want, name)
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), name
        elif isinstance(one, Codes):
            assert_same(one, other)
        elif isinstance(one, Layout):
            assert one.shapes == other.shapes
        else:
            assert one == other, name


def quantised(update: Update, bits: int, bucket: int, own_zeros: bool = False, spacing: Spacing = "affine") -> Update:
    """Return the same entries with codes that count up, and a scale for each bucket."""
    count = update.num_sent
    sizes = bucket_sizes(count, bucket) if bucket else update.num_sent_per_tensor(LAYOUT)
    scales = torch.arange(1.0, len(sizes) + 1) / 4 + (spacing == "logarithmic")
    zeros = torch.arange(len(sizes)) / 2 if own_zeros else torch.tensor([0.5])
    codes = (torch.arange(count) % 2**bits).int()
    return update.with_codes(Codes(codes, bits, scales, zeros, sizes, bucket, spacing))


def one_of_each() -> dict[str, Update]:
    """Return updates of the vector of ``LAYOUT``, 207 entries, in float32 with an exact block of two."""
    exact = torch.tensor([0.25, -8.0])
    dense = DenseUpdate(torch.arange(207) / 8, exact=exact)
    indices = torch.tensor([1, 2, 9, 70, 206])
    rows = torch.cat([torch.arange(100), torch.arange(150, 207)])
    positions = SeededUpdate.positions(5, LAYOUT.sizes, (3, 2, 1))
    updates = {
        "dense": dense,
        "gaps": SparseUpdate(torch.arange(5) - 1.5, indices, 207, exact=exact),
        "runs": SparseUpdate(torch.arange(157) / 4, rows, 207, exact=exact),
        "seeded": SeededUpdate(torch.arange(6) / 2, positions, 207, 5, (3, 2, 1), exact=exact),
        "low_rank": LowRankUpdate(torch.arange(68) / 16, LAYOUT, (2, 0, 1), exact=exact),
    }
    codings: dict[str, tuple[int, int, bool, Spacing]] = {
        "1": (1, 8, False, "affine"),
        "5": (5, 3, True, "affine"),
        "16": (16, 0, True, "affine"),
        "3 logarithmic": (3, 64, True, "logarithmic"),
    }
    for name, update in list(updates.items()):
        updates |= {f"{name}/{key}": quantised(update, *coding) for key, coding in codings.items()}
    return updates


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4))
    return Layout({f"t{number}": tuple(shape) for number, shape in enumerate(shapes)})


@st.composite
def supports(draw: st.DrawFn, layout: Layout) -> Update:
    """Draw an update of a vector with that layout; its values are ones."""
    kind = draw(st.sampled_from(["dense", "sparse", "seeded", "low rank"]))
    size = layout.size
    if kind == "dense":
        return DenseUpdate(torch.ones(size))
    if kind == "low rank":
        ranks = tuple(draw(st.integers(0, min(matrix_shape(shape)))) for shape in layout.shapes.values())
        return LowRankUpdate(torch.ones(sum(LowRankUpdate.lengths(layout, ranks))), layout, ranks)
    if kind == "seeded":
        sizes = layout.sizes if draw(st.booleans()) else (size,)
        counts = tuple(draw(st.integers(0, n)) for n in sizes)
        seed = draw(st.integers(0, 2**64 - 1))
        return SeededUpdate(torch.ones(sum(counts)), SeededUpdate.positions(seed, sizes, counts), size, seed, counts)
    indices = [index for index, sent in enumerate(draw(st.lists(st.booleans(), min_size=size, max_size=size))) if sent]
    return SparseUpdate(torch.ones(len(indices)), torch.tensor(indices, dtype=torch.int64), size)


@st.composite
def codes_of(draw: st.DrawFn, update: Update, layout: Layout) -> Codes:
    spacing: Spacing = draw(st.sampled_from(["affine", "logarithmic"]))
    bits, bucket = draw(st.integers(*bits_of(spacing))), draw(st.integers(0, 9))
    sizes = bucket_sizes(update.num_sent, bucket) if bucket else update.num_sent_per_tensor(layout)
    numbers = st.floats(-1e3, 1e3, width=32) if spacing == "affine" else st.floats(1.0, 1.5, width=32)
    scales = torch.tensor([draw(numbers) for _ in sizes], dtype=torch.float32)
    zeros = torch.tensor([draw(numbers) for _ in range(draw(st.sampled_from([1, len(sizes)])))], dtype=torch.float32)
    words = [draw(st.integers(0, 2**bits - 1)) for _ in range(update.num_sent)]
    return Codes(torch.tensor(words, dtype=torch.int32), bits, scales, zeros, sizes, bucket, spacing)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Update, Layout, bool]:
    """Draw an update of any kind and coding, its layout, and whether it is sent in half precision."""
    layout = draw(layouts())
    update, half = draw(supports(layout)), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float64] if draw(st.booleans()) else list(WIDTHS)))
    if dtype != torch.float16 and draw(st.booleans()):
        update = update.with_codes(draw(codes_of(update, layout)), dtype)
    else:
        # Products of a low-rank update and values in half precision must stay finite.
        most = 100.0 if half or isinstance(update, LowRankUpdate) else math.inf
        numbers = st.floats(-most, most, width=WIDTHS[dtype], allow_infinity=False)  # type: ignore[arg-type]
        update = update.with_values(torch.tensor([draw(numbers) for _ in range(update.num_sent)], dtype=dtype))
    exact = draw(st.lists(st.floats(-1e3, 1e3, width=32), max_size=3))
    exact_dtype = draw(st.sampled_from([torch.float32, torch.float64])) if exact else torch.float32
    return update.with_exact(torch.tensor(exact, dtype=exact_dtype)), layout, half
