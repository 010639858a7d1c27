"""Maps of parts, weights of levels, losses between nets, confusion and the clients' view, against plain counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import ConfigurationError, Level, analysis
from hetfl.analysis import RunSnapshots, Snapshots, load_snapshots
from hetfl.data import FederatedDataModule
from hetfl.models.static_batch_norm import static_layers
from hetfl.parts import RandomMask
from tests.conftest import small_data, small_module, small_net
from tests.headline_cases import MAE

WIDTHS = {"a": 1.0, "b": 0.5, "c": 0.25}
NETS = {level: small_net(width=width) for level, width in WIDTHS.items()}

Fit = Callable[..., Trainer]


def folder_of(trainer: Trainer) -> Path:
    assert trainer.log_dir is not None
    return Path(trainer.log_dir)


def snapshots_of(trainer: Trainer) -> RunSnapshots:
    return load_snapshots(folder_of(trainer))


@pytest.fixture
def snapshots(fit: Fit) -> RunSnapshots:
    return snapshots_of(fit(small_module(), rounds=3, callbacks=[Snapshots(1)]))


def rendered(figure: Figure) -> str:
    """Render a figure, and return all of its texts."""
    figure.draw_without_rendering()
    return " ".join(text.get_text() for text in figure.findobj(lambda each: hasattr(each, "get_text")))  # type: ignore[attr-defined]


def test_maps_of_widths_are_nested_blocks(snapshots: RunSnapshots) -> None:
    maps = analysis.smallest_levels(snapshots[2], NETS)
    shapes = {level: dict(net.state_dict()) for level, net in NETS.items()}
    for name, numbers in maps.items():
        for position in np.ndindex(*numbers.shape):
            holders = [
                number
                for number, level in enumerate(WIDTHS)
                if all(at < size for at, size in zip(position, shapes[level][name].shape, strict=True))
            ]
            assert int(numbers[position]) == max(holders)
    assert "smallest level" in rendered(analysis.plot_level_maps(maps, list(WIDTHS)))
    with pytest.raises(ConfigurationError, match="Expected names of tensors of two or more dimensions but got 'bias'"):
        analysis.plot_level_maps(maps, list(WIDTHS), ["bias"])


def test_maps_know_masks_and_what_nobody_holds(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", density=0.3)}
    trainer = fit(small_module(levels=levels, parts=RandomMask()), rounds=1, callbacks=[Snapshots(1)])
    snapshot = snapshots_of(trainer)[0]
    whole, sparse = small_net(), small_net()
    maps = analysis.smallest_levels(snapshot, {"a": whole, "b": sparse})
    part = snapshot.part(sparse, "b")
    assert sum(int((numbers == 1).sum()) for numbers in maps.values()) == part.size < part.layout.size
    alone = analysis.smallest_levels(snapshot, {"b": sparse})
    assert sum(int((numbers == -1).sum()) for numbers in alone.values()) == part.layout.size - part.size
    zeroed = analysis.outside_zeroed(dict(snapshot.weights), part)
    for name, numbers in maps.items():
        expected = torch.where(numbers == 1, snapshot.weights[name], torch.zeros(()))
        assert torch.equal(zeroed[name], expected)


def test_quantiles_and_spectra_are_those_of_numpy(snapshots: RunSnapshots) -> None:
    nets = {level: snapshots[2].fill(small_net(width=width), level) for level, width in WIDTHS.items()}
    table, spectra = analysis.weight_quantiles(nets), analysis.weight_spectra(nets)
    for level, net in nets.items():
        for name, tensor in net.named_parameters():
            if tensor.dim() < 2:
                assert name not in set(table["tensor"])
                continue
            values = tensor.detach().double().numpy()
            row = table[(table["level"] == level) & (table["tensor"] == name)].iloc[0]
            assert row["entries"] == values.size
            assert row[["q05", "q50", "q95"]].tolist() == pytest.approx(np.quantile(values, [0.05, 0.5, 0.95]).tolist())
            mine = spectra[(spectra["level"] == level) & (spectra["tensor"] == name)]
            expected = np.linalg.svd(values.reshape(len(values), -1), compute_uv=False)
            assert mine["value"].to_numpy() == pytest.approx(expected)
            assert mine["position"].tolist() == list(range(1, len(expected) + 1))
    assert "Distribution" in rendered(analysis.plot_weight_quantiles(table))
    assert "Singular" in rendered(analysis.plot_weight_spectra(spectra))
    with pytest.raises(ConfigurationError, match="but got 'unknown'"):
        analysis.weight_quantiles(nets, ["unknown"])


def test_distances_compare_the_entries_of_a_level_alone(snapshots: RunSnapshots) -> None:
    table = analysis.distance_to_last(snapshots, NETS)
    assert list(table.columns) == list(WIDTHS)
    assert (table.loc[2] == 0).all()
    assert (table.loc[0] > 0).all()
    maps = analysis.smallest_levels(snapshots[2], NETS)
    names = [name for name, tensor in small_net().named_parameters() if tensor.dim() > 1]
    moved = sum(
        float((snapshots[0].weights[n] - snapshots[2].weights[n]).double()[maps[n] == 1].pow(2).sum()) for n in names
    )
    size = sum(float(snapshots[2].weights[n].double()[maps[n] == 1].pow(2).sum()) for n in names)
    assert table.loc[0, "b"] == pytest.approx((moved / size) ** 0.5)
    assert "Distance" in rendered(analysis.plot_distance_to_last(table))


class Line(nn.Module):
    """Logits (0, w x) of two classes."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(x), self.weight * x], dim=1)


def test_a_path_has_the_losses_of_the_nets_in_between() -> None:
    net, inputs, targets = Line(5.0), torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1, 1, 0])
    start, end = ({"weight": torch.tensor([value]), "steps": torch.tensor(int(value))} for value in (-1.0, 3.0))
    path = analysis.loss_path(net, start, end, inputs, targets, points=5)
    assert path["alpha"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    for row, weight in zip(path.itertuples(), (-1, 0, 1, 2, 3), strict=True):
        expected = Line(float(weight))(inputs).detach()
        assert row.loss == pytest.approx(float(F.cross_entropy(expected, targets)))
        assert row.accuracy == pytest.approx(float((expected.argmax(1) == targets).double().mean()))
    assert net.weight.item() == 5.0, "the net was changed"
    below = min(path["loss"] - np.linspace(path["loss"].iloc[0], path["loss"].iloc[-1], 5))
    assert analysis.loss_barrier(path) == pytest.approx(0)  # cross-entropy is convex in w
    assert below < 0
    assert "pair: 0.00" in rendered(analysis.plot_loss_paths({"pair": path}))
    with pytest.raises(ConfigurationError, match="Expected both ends to have the same tensors"):
        analysis.loss_path(net, start, {}, inputs, targets)


def test_a_path_of_static_norms_normalises_by_the_samples(snapshots: RunSnapshots) -> None:
    net, data = snapshots[2].fill(small_net(), "a"), small_data()
    data.setup()
    samples = data.client_data(0)
    inputs = data.transform.eval(samples.inputs)
    tensors = dict(snapshots[2].weights)
    part = snapshots[2].part(small_net(width=0.25), "c")
    path = analysis.loss_path(net, analysis.outside_zeroed(tensors, part), tensors, inputs, samples.targets, 2)
    with torch.no_grad():
        outputs = {level: small_net(width=WIDTHS[level]) for level in ("c", "a")}
        for level, each in outputs.items():
            snapshots[2].fill(each, level)
            for layer in static_layers(each).values():
                layer.is_gathering = True
        losses = [float(F.cross_entropy(outputs[level](inputs), samples.targets)) for level in ("c", "a")]
    assert path["loss"].tolist() == pytest.approx(losses, rel=1e-4)


def test_confusion_counts_pairs() -> None:
    logits = torch.tensor([[2.0, 0, 1], [0, 1, 2], [0, 3, 1], [1, 0, 0]])
    table = analysis.confusion(logits, torch.tensor([0, 0, 1, 1]))
    assert table.to_numpy().tolist()[:2] == [[0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert table.loc[2].isna().all()
    assert "level b" in rendered(analysis.plot_confusion({"a": table, "b": table}))


def data_of_run() -> FederatedDataModule:
    data = small_data()
    data.setup()
    return data


def test_the_clients_view_joins_scores_and_labels(fit: Fit) -> None:
    data = data_of_run()
    trainer = fit(small_module(), data, rounds=1)
    trainer.test(trainer.lightning_module, datamodule=data, verbose=False)
    view = analysis.client_view(folder_of(trainer), data)
    scores = pd.read_csv(folder_of(trainer) / "clients.csv")
    pd.testing.assert_frame_equal(view[list(scores.columns)], scores)
    counts = torch.stack([data.client_data(k).targets.bincount(minlength=data.num_classes) for k in view["client"]])
    shares, whole = counts / counts.sum(1, keepdim=True), counts.sum(0) / counts.sum()
    assert view["divergence"].tolist() == pytest.approx(((shares - whole).abs().sum(1) / 2).tolist(), abs=1e-6)
    assert "divergence" in rendered(analysis.plot_client_view(view))
    with pytest.raises(ConfigurationError, match="Expected the columns own_r2 and divergence but got no own_r2"):
        analysis.plot_client_view(view, "own_r2")
    figure = analysis.plot_client_view(view.assign(own_mae=4.0), headline=MAE)
    assert figure.axes[0].get_ylabel() == "mean absolute error on own test samples"
    assert {float(y) for dots in figure.axes[0].collections for y in np.asarray(dots.get_offsets())[:, 1]} == {4.0}
    (folder_of(trainer) / "clients.csv").unlink()
    with pytest.raises(ConfigurationError, match="of a run with a final test, but got no such file"):
        analysis.client_view(folder_of(trainer), data)
