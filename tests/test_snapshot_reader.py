"""Reading snapshots: nets and numbers equal those of the run; damaged and missing files are reported in one line."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

from hetfl import ConfigurationError, FederatedModule, Level
from hetfl.analysis import Snapshot, Snapshots, load_snapshots
from hetfl.federation import FederatedCallback
from hetfl.local.channels_last import without_layout
from hetfl.models.static_batch_norm import static_layers
from hetfl.parts import PartRule, RandomChannels, RandomMask, Rolling
from hetfl.runs import RunFolder
from hetfl.snapshots.files import METADATA, checksum
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.test_snapshots import Fit, folder_of, net_with, snapshots_of

WIDTHS = {"a": 1.0, "b": 0.5, "c": 0.25}


class Logits(FederatedCallback):
    """Keeps every level's logits and weights after every round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FederatedModule)
        with torch.no_grad():
            nets = {level: without_layout(pl_module.submodel(level)) for level in pl_module.levels}
            self.rounds.append({level: net(samples(pl_module)) for level, net in nets.items()})
        self.weights.append({name: tensor.detach().clone() for name, tensor in pl_module.models.tensors[0].items()})


def samples(module: FederatedModule) -> Tensor:
    inputs: Tensor = module.data.transform.eval(module.data.client_data(0).inputs)
    return inputs


@pytest.mark.parametrize("norm", ["static_batch", "batch", "none"])
def test_a_net_filled_from_a_snapshot_has_the_logits_of_the_runs_net(fit: Fit, norm: str) -> None:
    module, logits, data = small_module(net=net_with(norm)), Logits(), small_data()
    trainer = fit(module, data, rounds=3, callbacks=[Snapshots(1), logits])
    metrics = pd.read_csv(folder_of(trainer) / "metrics.csv")
    module.trainer = trainer
    held_out = next(iter(data.val_dataloader()[0]))
    for snapshot, expected, weights in zip(snapshots_of(trainer), logits.rounds, logits.weights, strict=True):
        assert snapshot.levels == tuple(WIDTHS)
        assert list(snapshot.weights) == list(weights)
        assert all(torch.equal(snapshot.weights[name], tensor) for name, tensor in weights.items())
        for level, width in WIDTHS.items():
            net = snapshot.fill(small_net(width=width, norm=norm), level)
            assert not net.training
            with torch.no_grad():
                assert torch.equal(net(samples(module)), expected[level])
                right = net(data.transform.eval(held_out.inputs)).argmax(1) == held_out.targets
            accuracy = metrics[f"val/accuracy_by_level/{level}"][snapshot.round]
            assert float(right.double().mean()) == pytest.approx(accuracy, abs=1e-6)
            names = static_layers(net)
            assert snapshot.statistics.get(level, {}).keys() == names.keys()
            for name, (mean, var) in snapshot.statistics.get(level, {}).items():
                assert torch.equal(mean, names[name].mean)
                assert torch.equal(var, names[name].var)
    assert not torch.equal(logits.rounds[0]["c"], logits.rounds[2]["c"])


@pytest.mark.parametrize("rule", [Rolling(), RandomChannels(), RandomMask()], ids=["window", "channels", "mask"])
def test_every_part_rule_fills_a_net_with_the_part_of_its_level(fit: Fit, rule: PartRule) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5, density=0.3 if rule.masks else 1.0), "c": Level("c", 0.25)}
    module, logits = small_module(parts=rule, levels=levels), Logits()
    trainer = fit(module, rounds=3, callbacks=[Snapshots(1), logits])
    moved = 0
    for snapshot, expected in zip(snapshots_of(trainer), logits.rounds, strict=True):
        for level, width in WIDTHS.items():
            net = small_net(width=width)
            part = snapshot.part(net, level)
            assert part == rule.of_level(level, snapshot.round)
            moved += part != module.levels.indices[level]
            with torch.no_grad():
                assert torch.equal(snapshot.fill(net, level)(samples(module)), expected[level])
    assert moved == {Rolling: 4, RandomChannels: 6, RandomMask: 3}[type(rule)]


def test_a_part_that_does_not_fit_the_net_is_reported_as_damage(fit: Fit, tmp_path: Path) -> None:
    trainer = fit(small_module(parts=Rolling()), rounds=2, callbacks=[Snapshots(1)])
    snapshot = snapshots_of(trainer)[1]
    tensors = {name: snapshot.read(name) for name in snapshot._contents.checksums}
    tensors["parts/b"] = tensors["parts/b"][:-1]
    checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
    contents = replace(snapshot._contents, checksums=checksums)
    save_file(tensors, tmp_path / "short.safetensors", {METADATA: contents.to_json()})
    with pytest.raises(ConfigurationError, match=r"short.safetensors but got a damaged file: length: Expected"):
        Snapshot(tmp_path / "short.safetensors").fill(small_net(width=0.5), "b")


def test_a_snapshot_of_an_unvalidated_round_has_no_statistics(fit: Fit) -> None:
    multiple = "multiple of trainer.check_val_every_n_epoch, 2, but got 1: snapshots .* have no statistics"
    with pytest.warns(UserWarning, match=multiple) as caught:
        trainer = fit(small_module(), rounds=3, callbacks=[Snapshots(1)], check_val_every_n_epoch=2)
    assert sum("check_val_every_n_epoch" in str(warning.message) for warning in caught) == 1
    first, second, third = snapshots_of(trainer)
    assert first.statistics == third.statistics == {}
    assert second.statistics.keys() == WIDTHS.keys()
    assert first.weights.keys() == second.weights.keys()
    with pytest.raises(ConfigurationError, match="round-00000.safetensors but got none: its round was not validated"):
        first.fill(small_net(), "a")
    # A net without static norms needs no statistics, and gives neither a warning nor an error.
    trainer = fit(
        small_module(net=net_with("none")), rounds=1, name="none", callbacks=[Snapshots(1)], check_val_every_n_epoch=2
    )
    snapshots_of(trainer)[0].fill(small_net(norm="none"), "a")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with a snapshot."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("kept")
    trainer = Trainer(
        logger=RunFolder(folder=str(folder)),
        max_epochs=1,
        accelerator="cpu",
        callbacks=[Snapshots(1)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(small_module(levels=small_levels(1.0, 0.5)), datamodule=small_data())
    return folder


def everything(snapshot: Snapshot) -> tuple[Any, ...]:
    """Return the whole content of a snapshot in a comparable form."""
    weights = {name: tensor.tolist() for name, tensor in snapshot.weights.items()}
    statistics = {
        (level, name): (mean.tolist(), var.tolist())
        for level, layers in snapshot.statistics.items()
        for name, (mean, var) in layers.items()
    }
    return snapshot.round, snapshot.levels, weights, statistics, snapshot.layers().to_csv()


def test_damage_is_reported_in_one_line(kept: Path, tmp_path: Path) -> None:
    (file,) = (kept / "snapshots").iterdir()
    whole, data, choose = everything(load_snapshots(kept)[0]), file.read_bytes(), random.Random(0)
    header = int.from_bytes(data[:8], "little") + 8
    wrong = tmp_path / "snapshots" / file.name
    wrong.parent.mkdir()
    messages = []
    for number in range(300):
        position = choose.randrange(len(data) if number % 2 else header)
        flipped = bytes([data[position] ^ 1 << choose.randrange(8)])
        wrong.write_bytes(data[:position] + (flipped + data[position + 1 :] if number % 5 else b""))
        try:
            # The padding at the end of the header has no meaning.
            assert everything(load_snapshots(tmp_path)[0]) == whole
        except ConfigurationError as error:
            messages.append(str(error))
    assert len(messages) > 280
    assert all(re.fullmatch(rf"Expected .*{file.name} but got a damaged file: .+", each) for each in messages)


def test_tensors_are_read_on_access_and_owned_by_the_caller(kept: Path, tmp_path: Path) -> None:
    data = bytearray((kept / "snapshots/round-00000.safetensors").read_bytes())
    bias = Snapshot(kept / "snapshots/round-00000.safetensors").weights["classifier.bias"]
    position = data.index(bias.numpy().tobytes())
    data[position] ^= 1
    (tmp_path / "one.safetensors").write_bytes(data)
    snapshot = Snapshot(tmp_path / "one.safetensors")
    assert set(snapshot.layers()["tensor"]) == set(snapshot.weights)
    assert "classifier.bias" in snapshot.weights
    snapshot.weights["classifier.weight"].zero_()
    assert snapshot.weights["classifier.weight"].abs().max() > 0
    with pytest.raises(ConfigurationError, match="damaged file: the bytes of weights/classifier.bias"):
        _ = snapshot.weights["classifier.bias"]
    with pytest.raises(KeyError):
        _ = snapshot.weights["nothing"]


def test_missing_snapshots_and_tensors_are_reported_in_one_line(kept: Path, tmp_path: Path) -> None:
    snapshot = load_snapshots(kept)[0]
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots/round-00007.safetensors").write_bytes(
        (kept / "snapshots/round-00000.safetensors").read_bytes()
    )
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: load_snapshots(kept / "none"), "none/snapshots but got none: set --snapshots.every to keep them"),
        (lambda: load_snapshots(kept)[1], "a round with a snapshot in .*, 0, but got 1"),
        (lambda: load_snapshots(tmp_path)[7], "round-00007.safetensors but got a damaged file: it is of round 0"),
        (lambda: Snapshot(kept / "none.safetensors"), "no file that can be read: .*none.safetensors"),
        (lambda: Snapshot(tmp_path / "foreign.safetensors"), "its metadata are not those of a snapshot"),
        (lambda: snapshot.fill(small_net(), "c"), r"among a \(1466\), b \(450\) but got c \(1466\)"),
        (lambda: snapshot.fill(small_net(), "b"), r"among a \(1466\), b \(450\) but got b \(1466\)"),
        (lambda: snapshot.fill(small_net(norm="none"), "a"), r"but got a \(1418\)"),
        (lambda: snapshot.fill(nn.Sequential(nn.Linear(449, 1)), "b"), "'0.weight', which is not"),
    ]
    for ask, message in refusals:
        with pytest.raises(ConfigurationError, match=message) as error:
            ask()
        assert "\n" not in str(error.value)
