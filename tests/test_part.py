"""Results computed from an index are cached with it, and never used for another index."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

from hetfl.aggregators import HolderMean
from hetfl.aggregators.sums import FlatSums, Sums, TensorSums
from hetfl.entries import gather_flat
from hetfl.federation.clients import _restricted
from hetfl.part import DERIVED, Part, index_layout, only, part_of
from hetfl.types import Report
from hetfl.updates import DenseUpdate

WHOLE = Part({name: (slice(0, 3), slice(0, 2)) for name in "abcd"})


def test_the_layout_of_an_index_is_computed_once() -> None:
    assert index_layout(WHOLE) is index_layout(WHOLE)
    assert index_layout(dict(WHOLE)) == index_layout(WHOLE)
    assert part_of(WHOLE) is WHOLE
    assert part_of(dict(WHOLE)) == WHOLE


@pytest.mark.parametrize("kind", [FlatSums, TensorSums])
def test_copied_sums_do_not_confuse_a_new_index_with_a_freed_one(kind: type[Sums]) -> None:
    """Clusters copy aggregators, and freed indices may reuse memory: cached positions must not be confused by id."""
    sums, update = kind({"w": torch.empty(4, 3)}), DenseUpdate(torch.ones(4))
    freed = Part({"w": (slice(0, 2), slice(0, 2))})
    sums.add(update, freed, 1.0)
    assert copy.deepcopy(freed) is freed
    copied = copy.deepcopy(sums)
    del sums, freed
    gc.collect()
    later = [Part({"w": (slice(2, 4), slice(1, 3))}) for _ in range(1000)]
    for index in later:
        copied.clear()
        copied.add(update, index, 1.0)
        assert copied.tensors()["w"][2:, 1:].sum() == 4


def test_the_order_of_tensors_in_a_part_is_kept() -> None:
    part = only(WHOLE, frozenset("db"))
    assert list(part) == ["b", "d"]
    assert only(WHOLE, frozenset("bd")) is part


def test_derived_results_are_kept_up_to_the_limit() -> None:
    index, calls = Part(WHOLE), list[int]()

    def ask(key: int) -> int:
        return index.derived(key, lambda: calls.append(key) or -key)  # type: ignore[func-returns-value]

    assert [ask(key) for key in range(DERIVED)] == [-key for key in range(DERIVED)]
    ask(0)  # the last used result stays longest
    ask(DERIVED)
    assert len(calls) == DERIVED + 1
    ask(0)
    assert len(calls) == DERIVED + 1
    ask(1)
    assert len(calls) == DERIVED + 2


def test_the_sent_part_is_cut_out_of_the_clients_vector() -> None:
    """Two whole tensors, then rows of a third, and the last tensor left out; for two parts in turn."""
    rows = (torch.tensor([0, 2]), slice(0, 2))
    upload = Part({"a": WHOLE["a"], "b": WHOLE["b"], "c": rows})
    vector_D = torch.arange(24.0)
    views = index_layout(WHOLE).views(vector_D)
    for part in (WHOLE, Part(WHOLE), WHOLE):
        assert torch.equal(_restricted(vector_D, part, upload), gather_flat(views, upload))
    larger = Part({"z": (slice(0, 1),), **WHOLE})
    assert torch.equal(
        _restricted(torch.cat([torch.tensor([-1.0]), vector_D]), larger, upload), gather_flat(views, upload)
    )


def test_sums_of_the_previous_round_are_cleared() -> None:
    """The first client of the next round covers a tensor, a part of it, or nothing of it."""
    mean, report = HolderMean(), Report(0, "a", 1, 0.0, 0.0)
    tensors = {name: torch.empty(3, 2) for name in WHOLE}
    part = Part({"a": WHOLE["a"], "b": (slice(0, 2), slice(0, 1))})
    for _ in range(2):
        mean.reset(tensors)
        for sign in (1.0, 3.0):
            mean.update(DenseUpdate(sign * torch.arange(1.0, 25.0)), WHOLE, report)
        delta, _ = mean.compute()
        assert torch.equal(torch.cat([delta[name].flatten() for name in WHOLE]), 2 * torch.arange(1.0, 25.0))
        mean.reset(tensors)
        mean.update(DenseUpdate(torch.arange(1.0, 9.0)), part, report)
        delta, holders = mean.compute()
        assert torch.equal(delta["a"].flatten(), torch.arange(1.0, 7.0))
        assert torch.equal(delta["b"], torch.tensor([[7.0, 0.0], [8.0, 0.0], [0.0, 0.0]]))
        assert not delta["c"].any()
        assert not holders["c"].any()
