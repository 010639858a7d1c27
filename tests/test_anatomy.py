"""Holders, drift of levels and channel norms, against a position-by-position computation from the run's updates."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Callback, Trainer
from matplotlib.image import AxesImage
from torch import Tensor, nn
from torch.optim import SGD, Adam

from hetfl import ConfigurationError, DepthFL, FederatedModule, HeteroFL, Level
from hetfl.analysis import (
    LevelDrift,
    Snapshots,
    channel_norms,
    holders,
    load_snapshots,
    mean_holders,
    plot_channel_norms,
    plot_drift,
    plot_holders,
    plot_mean_holders,
)
from hetfl.clustering import IFCA
from hetfl.compression import ErrorFeedback, GammaFedHT
from hetfl.data import LabelShards
from hetfl.fleet import Device, DiscountedUCB, Dynamic, SameDevice
from hetfl.layout import Index
from hetfl.local import LocalTraining
from hetfl.models import MultiExitConvNet
from hetfl.parts import Prefix
from hetfl.piece import Facts
from hetfl.selection import Selection, Uniform
from tests.conftest import small_data, small_levels, small_module
from tests.part_cases import SHAPES, WHOLE, blocks, held_by, parts_like
from tests.test_snapshots import Recorder, SparesBiases, folder_of, mask

Fit = Callable[..., Trainer]
WIDTHS = {"a": 1.0, "b": 0.5, "c": 0.25}


def small_depth(**changes: Any) -> FederatedModule:
    net = lambda width=1.0, depth=3: MultiExitConvNet(hidden=(4, 8, 8), depth=depth, width=width)  # noqa: E731
    levels = {"a": Level("a", depth=3), "b": Level("b", depth=2), "c": Level("c", depth=1)}
    return small_module(DepthFL, net=net, levels=levels, **changes)


def masks_of(held: Index, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: mask(shapes[name], entry) for name, entry in held.items() if name in shapes}


# Holders.


@pytest.mark.parametrize("kind", [HeteroFL, SparesBiases, DepthFL])
def test_replayed_holders_equal_those_of_the_arrived_updates(fit: Fit, kind: type[FederatedModule]) -> None:
    module = small_depth() if kind is DepthFL else small_module(kind)  # levels are redrawn in every round
    recorder = Recorder()
    fit(
        module,
        small_data(num_clients=15, partitioner=LabelShards(2)),
        rounds=5,
        callbacks=[recorder],
        limit_val_batches=0,
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in module.net.named_parameters()}
    ever: dict[int, dict[str, np.ndarray]] = {}
    for _, index, report in (update for updates in recorder.updates for update in updates):
        mine = ever.setdefault(report.client, {name: np.zeros(shape, dtype=bool) for name, shape in shapes.items()})
        for name, covered in masks_of(index, shapes).items():
            mine[name] |= covered
    actual = holders(module, rounds=5)
    assert actual.keys() == shapes.keys()
    for name, counts in actual.items():
        assert counts.dtype == torch.int64
        assert np.array_equal(counts.numpy(), sum(mine[name] for mine in ever.values()))
    assert len(ever) < sum(map(len, recorder.updates)), "no client took part twice, which the test needs"
    if kind is HeteroFL:
        rows = actual["classifier.bias"].tolist()
        assert len(set(rows)) > 1, "classifier rows must differ in holders, as clients own two labels each"


entries = st.lists(st.integers(0, 4), unique=True, min_size=1).map(lambda own: torch.tensor(sorted(own)))
parts = st.one_of(entries, st.integers(0, 5).map(lambda stop: slice(0, stop)))
indices = st.fixed_dictionaries({}, optional={"weight": st.tuples(parts, parts), "bias": st.tuples(parts)})


@settings(max_examples=50)
@given(rounds=st.lists(st.lists(st.tuples(st.integers(0, 3), indices), max_size=4), max_size=4))
def test_holders_of_any_indices_equal_a_count_one_by_one(rounds: list[list[tuple[int, Index]]]) -> None:
    selection = Uniform(2)
    selection.setup(Facts([9] * 4))

    def tasks(round: int, lr: float) -> list[SimpleNamespace]:
        return [SimpleNamespace(client=k, sent=index) for k, index in rounds[round]]

    stand_in = SimpleNamespace(
        net=nn.Linear(5, 5),
        selection=selection,
        assignment=Dynamic(),
        parts=Prefix(),
        models=[None],
        ledger=SimpleNamespace(deadline=None, fleet=SimpleNamespace(fails=lambda client, round: None)),
        round=SimpleNamespace(tasks=tasks),
    )
    counts = holders(cast(FederatedModule, stand_in), len(rounds))
    for name, shape in (("weight", (5, 5)), ("bias", (5,))):
        for place in np.ndindex(*shape):
            ever = {k for each in rounds for k, index in each if name in index and mask(shape, index[name])[place]}
            assert counts[name][place] == len(ever)


def test_a_run_that_cannot_be_replayed_is_refused(fit: Fit) -> None:
    class Learns(Uniform):
        replayable = False

    module = small_module(selection=Learns(4))
    fit(module, rounds=1)
    with pytest.raises(ConfigurationError, match="Expected a selection that can be replayed, .* but got Learns"):
        holders(module, 1)
    module = small_module(assignment=DiscountedUCB())
    fit(module, rounds=1)
    with pytest.raises(ConfigurationError, match="Expected an assignment that can be replayed, .* DiscountedUCB"):
        holders(module, 1)
    with pytest.raises(ConfigurationError, match="Expected an assignment that can be replayed, .* DiscountedUCB"):
        module.round.tasks(1, lr=0.0)
    module = small_module(deadline=1e9)
    fit(module, rounds=1)
    with pytest.raises(ConfigurationError, match="Expected no deadline, .* but got one of 1e\\+09 s"):
        holders(module, 1)
    module = small_module(clustering=IFCA(2))
    fit(module, rounds=1)
    with pytest.raises(ConfigurationError, match="Expected one global model, .* but got 2"):
        holders(module, 1)
    with pytest.raises(ConfigurationError, match=r"Expected a module that has met its data .* but got a new one"):
        holders(small_module(), 1)
    assert isinstance(module.selection, Selection)


def test_clients_that_fail_hold_nothing(fit: Fit) -> None:
    module, recorder = small_module(fleet=SameDevice(Device(failure_rate=0.4)), seed=1), Recorder()
    fit(module, rounds=3, callbacks=[recorder], limit_val_batches=0)
    trained = {report.client for updates in recorder.updates for _, _, report in updates}
    assert len(trained) < len({task.client for round in range(3) for task in module.round.tasks(round, lr=0.0)})
    counts = holders(module, rounds=3)["blocks.0.conv.weight"]
    assert counts[0, 0, 0, 0] == len(trained)  # an entry of all levels


def test_mean_holders_equal_the_held_entries_of_the_snapshots(fit: Fit) -> None:
    module, recorder = small_module(), Recorder()
    trainer = fit(module, rounds=4, callbacks=[recorder, Snapshots(2)], limit_val_batches=0)
    table = mean_holders(load_snapshots(folder_of(trainer)).layers())
    shapes = {name: tuple(tensor.shape) for name, tensor in module.net.named_parameters()}
    assert list(table.index) == list(shapes)
    assert list(table.columns) == ["a", "b", "c"]
    for level in table.columns:
        for name, shape in shapes.items():
            updates = [update for round in (1, 3) for update in recorder.updates[round]]
            held = [masks_of(index, shapes)[name].sum() for _, index, report in updates if report.level == level]
            assert table.loc[name, level] == pytest.approx(sum(held) / np.prod(shape) / 2)


# Drift.


class Models(Recorder):
    """A recorder that also keeps the global model before every round."""

    def __init__(self) -> None:
        super().__init__()
        self.models: list[dict[str, np.ndarray]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.models.append(arrays(pl_module))


def arrays(module: FederatedModule) -> dict[str, np.ndarray]:
    return {name: tensor.detach().double().numpy().copy() for name, tensor in module.net.named_parameters()}


def expected_drift(recorder: Models, round: int, level: str) -> tuple[float, float, int]:
    """Return distance, norm and number of clients of a level, entry by entry in float64."""
    before, after = recorder.models[round], recorder.models[round + 1]
    sums = {name: np.zeros_like(tensor) for name, tensor in before.items()}
    counts = {name: np.zeros_like(tensor) for name, tensor in before.items()}
    mine = [update for update in recorder.updates[round] if update[2].level == level]
    for update, index, _ in mine:
        dense, used = update.to_dense().double().numpy(), 0
        for name, covered in masks_of(index, {name: tensor.shape for name, tensor in before.items()}).items():
            sums[name][covered] += dense[used : used + covered.sum()]
            counts[name] += covered
            used += covered.sum()
    apart = [(before[name] + sums[name] / counts[name].clip(1) - after[name])[counts[name] > 0] for name in before]
    return (
        float(np.sqrt(sum((part**2).sum() for part in apart))),
        float(np.sqrt(sum((after[name][counts[name] > 0] ** 2).sum() for name in before))),
        len(mine),
    )


@pytest.mark.parametrize("server", [SGD, Adam])
def test_drift_equals_a_computation_from_the_updates_of_the_level(fit: Fit, server: type[SGD | Adam]) -> None:
    uplink, recorder, drift = ErrorFeedback(GammaFedHT(density=0.3)), Models(), LevelDrift()
    module = small_module(server_optimizer=lambda p: server(p, lr=0.5), uplink=uplink)
    fit(
        module,
        small_data(num_clients=15, partitioner=LabelShards(2)),
        rounds=5,
        callbacks=[recorder, drift],
        limit_val_batches=0,
    )
    recorder.models.append(arrays(module))
    table = drift.table()
    assert list(table.columns) == ["step", "model", "level", "clients", "distance", "norm", "drift"]
    assert list(table["step"]) == [round for round in range(5) for _ in WIDTHS]
    assert list(table["level"]) == list(WIDTHS) * 5
    for row in table.itertuples():
        distance, norm, clients = expected_drift(recorder, cast(int, row.step), cast(str, row.level))
        assert row.clients == clients
        if clients:
            assert row.distance == pytest.approx(distance, rel=1e-4)
            assert row.norm == pytest.approx(norm, rel=1e-5)
            assert row.drift == pytest.approx(distance / norm, rel=1e-4)
        else:
            assert np.isnan(cast(float, row.drift))
    assert (table["clients"] == 0).any(), "no level without clients, which the test needs"
    assert (table["clients"].groupby(table["step"]).sum() == 4).all()


def test_drift_is_zero_without_training_and_with_one_level(fit: Fit) -> None:
    still, alone = LevelDrift(), LevelDrift()
    fit(
        small_module(local=LocalTraining(epochs=1, optimizer=lambda p: SGD(p, lr=0.0))),
        callbacks=[still],
        limit_val_batches=0,
    )
    fit(small_module(levels=small_levels(1.0)), callbacks=[alone], limit_val_batches=0)
    assert (still.table()["drift"].dropna() == 0).all()
    assert (alone.table()["drift"] == 0).all()
    assert (alone.table()["norm"] > 0).all()


def test_every_model_is_compared_with_its_own_clients(fit: Fit) -> None:
    drift = LevelDrift()
    module = small_module(levels=small_levels(1.0), clustering=IFCA(2), selection=Uniform(8))
    fit(module, callbacks=[drift], limit_val_batches=0)
    table = drift.table()
    assert list(table["model"]) == [0, 1] * 3
    assert (table.groupby("model")["clients"].sum() > 0).all(), "a model without clients, which the test must not have"
    assert (table["drift"].dropna() == 0).all(), "one level's aggregate is the new model"
    with pytest.raises(ConfigurationError, match="Expected the drift of one global model but got 2"):
        plot_drift(table)


def test_a_resumed_run_has_the_drift_of_all_rounds(fit: Fit, tmp_path: Path) -> None:
    class Saves(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    whole, half, again = LevelDrift(), LevelDrift(), LevelDrift()
    fit(small_module(), callbacks=[whole])
    fit(small_module(), rounds=2, callbacks=[half, Saves()])
    fit(small_module(), callbacks=[again], ckpt=str(tmp_path / "last.ckpt"))
    assert list(again.table()["step"]) == [round for round in range(3) for _ in WIDTHS]
    pd.testing.assert_frame_equal(again.table(), whole.table())


def test_recording_the_drift_does_not_change_the_run(fit: Fit) -> None:
    plain, followed = small_module(), small_module()
    fit(plain)
    fit(followed, callbacks=[LevelDrift()])
    assert all(
        torch.equal(plain.models.tensors[0][name], tensor) for name, tensor in followed.models.tensors[0].items()
    )


# Norms.


@settings(max_examples=50)
@given(data=st.data(), channels=st.integers(1, 8), gather=st.booleans())
def test_channel_norms_equal_a_loop_over_channels(data: st.DataObject, channels: int, gather: bool) -> None:
    weights = {"conv": torch.randn(channels, 2, 3, generator=torch.Generator().manual_seed(channels))}
    sizes = sorted({channels, *data.draw(st.lists(st.integers(1, channels), max_size=3))}, reverse=True)

    def entry(size: int) -> tuple[slice | Tensor, ...]:
        return (torch.arange(channels)[channels - size :] if gather else slice(0, size), slice(0, 2), slice(0, 3))

    levels = {f"level {size}": {"conv": entry(size)} for size in data.draw(st.permutations(sizes))}
    table = channel_norms(weights, levels)
    norms = [np.sqrt((weights["conv"][c].double().numpy() ** 2).sum()) for c in range(channels)]
    assert np.allclose(table["norm"], norms)
    assert np.allclose(table["share"], np.cumsum(np.square(norms)) / np.square(norms).sum())
    assert list(table["channel"]) == list(range(channels))
    for c, level in enumerate(table["level"]):
        place = channels - 1 - c if gather else c
        assert level == f"level {min(size for size in sizes if size > place)}"


def test_channel_norms_are_computed_for_the_requested_tensors() -> None:
    module = small_module()
    weights = dict(module.net.state_dict())
    both = channel_norms(weights, module.levels.indices, ["blocks.1.conv.weight", "blocks.0.conv.weight"])
    assert list(both["tensor"].unique()) == ["blocks.1.conv.weight", "blocks.0.conv.weight"]
    first = both[both["tensor"] == "blocks.0.conv.weight"]
    assert list(first["level"]) == list("ccbbaaaa")
    assert set(channel_norms(weights, module.levels.indices)["tensor"]) == {
        name for name, tensor in weights.items() if tensor.dim() > 1
    }
    for tensors, wrong in ((["conv"], "'conv'"), ([], "none")):
        with pytest.raises(ConfigurationError, match=f"Expected names of the model's tensors but got {wrong}"):
            channel_norms(weights, module.levels.indices, tensors)


@settings(max_examples=50)
@given(data=st.data())
def test_channel_norms_name_the_smallest_level_that_holds_the_channel(data: st.DataObject) -> None:
    tensors = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    parts = {"all": WHOLE} | {level: data.draw(parts_like(data.draw(blocks()))) for level in "bcd"}
    table = channel_norms(tensors, parts)
    sizes = {level: sum(held.sum() for held in held_by(part).values()) for level, part in parts.items()}
    for row in table.itertuples():
        holding = [level for level, part in parts.items() if held_by(part)[row.tensor][row.channel].any()]  # type: ignore[index]
        smallest = min(sizes[level] for level in holding)
        assert row.level in holding
        assert sizes[row.level] == smallest  # type: ignore[index]


# Figures.


def test_figures_show_the_tables() -> None:
    table = pd.DataFrame({"a": [1.0, 0.5], "b": [2.0, 0.0]}, index=["first", "second"])
    ax = plot_mean_holders(table).axes[0]
    assert [patch.get_width() for patch in ax.patches] == [1.0, 0.5, 2.0, 0.0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
    assert {"a", "b"} <= {text.get_text() for text in ax.texts}

    counts = torch.arange(24).view(3, 4, 2)
    figure = plot_holders({"conv": counts, "bias": torch.zeros(3)})
    (image,) = (child for child in figure.axes[0].get_children() if isinstance(child, AxesImage))
    assert np.array_equal(np.asarray(image.get_array()), counts.double().mean(2).numpy())

    module = small_module()
    norms = channel_norms(module.net.state_dict(), module.levels.indices, ["blocks.0.conv.weight"])
    ax = plot_channel_norms(norms).axes[0]
    assert np.allclose([patch.get_height() for patch in ax.patches], norms["norm"])  # type: ignore[attr-defined]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]

    window = channel_norms({"w": torch.ones(4, 2)}, {"a": {"w": (slice(0, 4),) * 2}, "b": {"w": (slice(1, 3),) * 2}})
    assert list(window["level"]) == ["a", "b", "b", "a"]
    assert plot_channel_norms(window).axes[0].get_title().endswith("first 25 %: 25 % of norm²")


def test_labels_of_drift_lines_do_not_overlap() -> None:
    rows = [(step, 0, level, 1, 1.0, 10.0, 0.1) for step in range(3) for level in "abcd"]
    table = pd.DataFrame(rows, columns=["step", "model", "level", "clients", "distance", "norm", "drift"])
    table.loc[table["level"] == "d", "drift"] = np.nan  # no client had this level
    ax = plot_drift(table).axes[0]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[10.0] * 3] * 3  # type: ignore[union-attr]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "c"]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_figures_of_empty_tables_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="Expected the drift of at least one round but got none"):
        plot_drift(LevelDrift().table())
    with pytest.raises(
        ConfigurationError, match="Expected names of tensors of two or more dimensions but got 'bias', 'x'"
    ):
        plot_holders({"bias": torch.zeros(3)}, ["bias", "x"])
