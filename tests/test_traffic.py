"""Densities of uploads and sizes of residuals: against the arrived updates and against the stores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor

from hetfl import ConfigurationError
from hetfl.analysis import (
    Snapshots,
    layer_density,
    layer_residuals,
    load_residuals,
    load_run,
    load_snapshots,
    plot_layer_density,
    plot_residuals,
)
from hetfl.compression import ErrorFeedback, TopK
from hetfl.part import index_layout
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.store import ClientStore, DiskStore, MemoryStore
from hetfl.updates import SparseUpdate
from tests.conftest import small_module
from tests.test_snapshots import Recorder, SparesBiases, folder_of

Fit = Callable[..., Trainer]


def sparse(store: ClientStore | None = None) -> ErrorFeedback:
    return ErrorFeedback(TopK(0.1), residuals=store)


def test_density_equals_a_count_over_the_arrived_updates(fit: Fit) -> None:
    module, recorder = small_module(SparesBiases, uplink=sparse()), Recorder()
    trainer = fit(module, rounds=4, callbacks=[recorder, Snapshots(2)])
    table = layer_density(load_snapshots(folder_of(trainer)).layers())
    assert list(table.index) == [name for name, _ in module.net.named_parameters()]
    assert list(map(int, table.columns)) == [1, 3]
    for round in (1, 3):
        held, sent = dict.fromkeys(table.index, 0), dict.fromkeys(table.index, 0)
        for update, index, _ in recorder.updates[round]:
            assert isinstance(update, SparseUpdate)
            layout = index_layout(index)
            owner = [name for name, size in zip(layout.shapes, layout.sizes, strict=True) for _ in range(size)]
            for name in owner:
                held[name] += 1
            for position in update.indices.tolist():
                sent[owner[position]] += 1
        for name in table.index:
            expected = sent[name] / held[name] if held[name] else np.nan
            assert table.loc[name, round] == pytest.approx(expected, nan_ok=True)


def test_density_of_a_tensor_without_holders_is_nan() -> None:
    rows = [(0, "a", "t", 0, 0), (1, "a", "t", 4, 1), (1, "b", "t", 4, 3)]
    table = layer_density(pd.DataFrame(rows, columns=["step", "level", "tensor", "held", "sent"]))
    assert np.isnan(table.loc["t", 0])  # type: ignore[arg-type]
    assert table.loc["t", 1] == 0.5


blocks = st.dictionaries(
    st.sampled_from(["conv", "bias"]), st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=5).map(torch.tensor)
)


@given(st.dictionaries(st.integers(0, 9), blocks))
def test_residuals_per_tensor_are_summed_over_clients(clients: dict[int, dict[str, Tensor]]) -> None:
    store = MemoryStore()
    for client, tensors in clients.items():
        store.save(client, tensors, round=0)
    table = layer_residuals(store)
    assert set(table.index) == {name for tensors in clients.values() for name in tensors}
    for name in table.index:
        held = [tensors[name] for tensors in clients.values() if name in tensors]
        squares = [float(value) ** 2 for block in held for value in block.double()]
        assert table.loc[name, "clients"] == len(held)
        assert table.loc[name, "norm"] == pytest.approx(math.sqrt(sum(squares)))
        assert table.loc[name, "rms"] == pytest.approx(math.sqrt(sum(squares) / len(squares)))


def test_residuals_of_a_run_match_its_metrics(fit: Fit) -> None:
    module = small_module(uplink=sparse())
    trainer = fit(module, rounds=3)
    table = layer_residuals(module.uplink.residuals)
    logged = load_run(folder_of(trainer)).series("residual/norm").iloc[-1]
    assert math.sqrt((table["norm"] ** 2).sum()) == pytest.approx(logged, rel=1e-9)
    assert list(table.index) == [name for name, _ in module.net.named_parameters() if name in table.index]
    assert table["clients"].max() <= len(module.uplink.residuals.clients())


@pytest.mark.parametrize("store", [MemoryStore, DiskStore])
def test_residuals_are_read_from_a_checkpoint(fit: Fit, tmp_path: Path, store: type[MemoryStore | DiskStore]) -> None:
    module = small_module(uplink=sparse(store()))
    trainer = fit(module, rounds=2, plugins=[SafeCheckpointIO()])
    path = folder_of(trainer) / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(path)
    files = sorted(folder_of(trainer).rglob("*"))
    loaded, stored = load_residuals(path), module.uplink.residuals
    assert loaded.clients() == stored.clients() != []
    for client in stored.clients():
        assert loaded.load(client).keys() == stored.load(client).keys()
        assert all(torch.equal(block, stored.load(client)[name]) for name, block in loaded.load(client).items())
    pd.testing.assert_frame_equal(layer_residuals(loaded), layer_residuals(stored))
    assert sorted(folder_of(trainer).rglob("*")) == files, "reading must not change a run"
    if store is DiskStore:
        path = path.rename(tmp_path / "moved.ckpt")
        elsewhere = load_residuals(path, folder=folder_of(trainer) / "residuals")
        assert elsewhere.load(stored.clients()[0]).keys() == stored.load(stored.clients()[0]).keys()


def test_a_checkpoint_without_residuals_is_refused(tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match=r"Expected a checkpoint of a federated run but got .*other.ckpt"):
        load_residuals(tmp_path / "other.ckpt")
    with pytest.raises(ConfigurationError, match="Expected a whole checkpoint but got none: .*none.ckpt: No such file"):
        load_residuals(tmp_path / "none.ckpt")


def test_figures_show_the_tables() -> None:
    density = pd.DataFrame({3: [0.5, np.nan], 7: [0.25, 0.125]}, index=["conv", "bias"])
    ax = plot_layer_density(density).axes[0]
    assert [text.get_text() for text in ax.texts] == ["50.0", "25.0", "12.5"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "8"]  # rounds 3 and 7, counted from 1
    residuals = pd.DataFrame({"clients": [2, 1], "norm": [3.0, 1.0], "rms": [0.001, 0.002]}, index=["conv", "bias"])
    left, right = plot_residuals(residuals).axes
    assert [patch.get_width() for patch in left.patches] == [3.0, 1.0]  # type: ignore[attr-defined]
    assert [patch.get_width() for patch in right.patches] == [0.001, 0.002]  # type: ignore[attr-defined]
    with pytest.raises(ConfigurationError, match="Expected residuals but got none: did the run compress"):
        plot_residuals(layer_residuals(MemoryStore()))
