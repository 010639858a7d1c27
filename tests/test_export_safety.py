"""Exported files from untrusted sources and damaged disks are refused in one line, and none of their code runs."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch

import hetfl
from hetfl import ConfigurationError, FederatedModule
from hetfl.export import export_submodel
from hetfl.export.card import read_card
from hetfl.export.onnx_graph import Onnx
from hetfl.export.tensors import Safetensors
from tests.conftest import small_levels, small_module
from tests.test_export import trained


@pytest.fixture(scope="module")
def federation() -> FederatedModule:
    torch.set_num_threads(1)
    return trained(small_module(levels=small_levels(1.0, 0.25)))


@pytest.fixture(scope="module")
def originals(federation: FederatedModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    for name in ("b.safetensors", "b.onnx"):
        export_submodel(federation, "b", folder / name)
    return folder


@pytest.fixture
def files(originals: Path, tmp_path: Path) -> Path:
    """Return a folder with one file of each format, to be damaged."""
    return Path(shutil.copytree(originals, tmp_path / "files"))


def refusal(path: Path) -> str:
    """Return the one-line error of loading a file."""
    with pytest.raises(ConfigurationError) as error:
        hetfl.load(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


def change_card(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads(path.with_name(f"{path.name}.json").read_text())
    change(card)
    path.with_name(f"{path.name}.json").write_text(json.dumps(card))


def replace_content(path: Path, data: bytes) -> None:
    """Write a file, and write its digest into its card, as an attacker would do."""
    path.write_bytes(data)
    change_card(path, lambda card: card.update(sha256=hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize("name", ["b.safetensors", "b.onnx"])
def test_every_damage_is_detected(files: Path, name: str) -> None:
    path, choose = files / name, random.Random(0)
    data = path.read_bytes()
    for _ in range(20):
        position = choose.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        assert "damaged, or another file" in refusal(path)
        path.write_bytes(data[:position])
        assert "damaged, or another file" in refusal(path)
    path.unlink()
    assert f"{name} but got: No such file" in refusal(path)
    path.with_name(f"{name}.json").unlink()
    assert "which does not exist" in refusal(path)
    path.write_bytes(data)
    assert f"card of an exported file in {path}.json but got: No such file" in refusal(path)


CARDS: dict[str, tuple[str, str]] = {
    "empty": ("", "got no JSON"),
    "torn": ('{"card": 1, "file": "b.s', "got no JSON"),
    "nested": ("[" * 100_000, "at most 100 lists and mappings inside each other in .* but got more"),
    "a list": ("[]", "got other content"),
    "another object": ('{"a": 1}', "got other content"),
    "huge": ('{"card": 1, "a": "' + "x" * 1_000_000 + '"}', "at most 1,000,000 bytes in"),
    "of the future": ('{"card": 2}', "version 1 in .* but got version 2"),
    "without a net": ('{"card": 1, "level": {}}', r"Expected net \(dict\) in the card"),
    "level of text": ('{"card": 1, "level": "c"}', r"Expected level \(dict\) in the card .* but got 'c'"),
}


@pytest.mark.parametrize("case", CARDS)
def test_an_invalid_card_is_refused(case: str, files: Path) -> None:
    text, expected = CARDS[case]
    (files / "b.onnx.json").write_text(text)
    with pytest.raises(ConfigurationError, match=expected):
        hetfl.load(files / "b.onnx")
    refusal(files / "b.onnx")


CLASSES = [
    "os.system",
    "stranger.Net",
    "torch.nn.Linear",
    "hetfl.HeteroFL",
    "hetfl.cli.main",
    "hetfl.models.make_norm",
    "hetfl.models.os.system",
    "hetfl.models.convnet.nn.Linear",
    "hetfl.models.layers.Literal",
    "hetfl.models.layers.Tensor",
    "hetfl.models.stranger.Net",
    "hetfl.models..ConvNet",
    "hetfl.models.ConvNet.__init__",
    "hetfl.models.Nope",
    "",
]


@pytest.mark.parametrize("name", CLASSES)
def test_a_card_can_only_construct_nets_of_hetfl(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Net: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)  # other tests import a module of this name
    change_card(files / "b.safetensors", lambda card: card["net"].update({"class": name}))
    assert "only nets of hetfl.models with plain arguments are made from a card" in refusal(files / "b.safetensors")
    assert "stranger" not in sys.modules
    assert not (tmp_path / "ran").exists()


ARGUMENTS: dict[str, tuple[Any, str]] = {
    "unknown": ({"nope": 1}, "unexpected keyword argument 'nope'"),
    "of a wrong type": ({"hidden": "many"}, "Expected a net from the card's"),
    "out of range": ({"width": 7}, r"width in \(0, 1\] but got 7"),
    "for another net": ({"hidden": [8, 8], "width": 0.25}, "Expected tensor 'blocks.1.conv.weight' of the net to be"),
    "for more memory than there is": ({"hidden": [10**6, 10**6]}, "to be float32 .1000000, 1, 3, 3. but got"),
    "none": (None, "only nets of hetfl.models with plain arguments"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_card_arguments_that_make_another_net_are_refused(case: str, files: Path) -> None:
    arguments, expected = ARGUMENTS[case]
    change_card(files / "b.safetensors", lambda card: card["net"].update(arguments=arguments))
    with pytest.raises(ConfigurationError, match=expected):
        hetfl.load(files / "b.safetensors")
    refusal(files / "b.safetensors")


def test_tensors_that_do_not_match_the_net_are_refused(files: Path) -> None:
    path = files / "b.safetensors"
    tensors = safetensors.torch.load_file(path)
    bias = tensors["classifier.bias"]
    changes: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "shape": ({"classifier.bias": bias[:5]}, "float32 (10,) but got float32 (5,)"),
        "type": ({"classifier.bias": bias.double()}, "float32 (10,) but got float64 (10,)"),
        "one more": ({"surprise": bias.clone()}, "'surprise' of the net to be none but got float32 (10,)"),
    }
    for change, expected in changes.values():
        replace_content(path, safetensors.torch.save(tensors | change))
        assert expected in refusal(path)
    replace_content(path, safetensors.torch.save({name: t for name, t in tensors.items() if not name.endswith("mean")}))
    assert "'blocks.0.norm.mean' of the net to be float32 (2,) but got none" in refusal(path)
    replace_content(path, b"\xff" * 50)
    assert "Expected a safetensors file" in refusal(path)


@pytest.mark.parametrize("width", ["0", "-1", "1.5", "NaN", "1" + 400 * "0"])
def test_a_card_with_an_impossible_width_is_refused(files: Path, width: str) -> None:
    card = files / "b.safetensors.json"
    card.write_text(re.sub(r'"width": [0-9.]+,', f'"width": {width},', card.read_text(), count=1))
    assert "a width in (0, 1] in the card" in refusal(files / "b.safetensors")


def test_a_card_of_a_huge_net_is_refused_before_construction(files: Path) -> None:
    card = files / "b.safetensors.json"
    content = json.loads(card.read_text())
    content["net"]["arguments"]["hidden"] = [1] * 100_000
    card.write_text(json.dumps(content))
    assert "at most 10000 characters of arguments" in refusal(files / "b.safetensors")


def test_a_card_of_a_net_of_a_billion_layers_is_refused_while_it_is_made(files: Path) -> None:
    """A number of layers takes few characters, so the parameters that are made for them are counted."""
    net = {"class": "hetfl.models.LSTM", "arguments": {"vocab_size": 9, "num_classes": 9, "layers": 10**9}}
    change_card(files / "b.safetensors", lambda card: card.update(net=net))
    assert re.search(r"Expected a net of at most \d+ parameters but got more", refusal(files / "b.safetensors"))


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin"])
def test_an_onnx_file_that_refers_to_other_files_is_refused(
    files: Path, federation: FederatedModule, location: str
) -> None:
    path = files / "b.onnx"
    export_submodel(federation, "b", path)
    model = onnx.load_from_string(path.read_bytes())
    tensor = next(each for each in model.graph.initializer if each.raw_data)
    (files / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    replace_content(path, model.SerializeToString())
    assert "with all values inside but got one that may name other files" in refusal(path)


def test_a_loaded_onnx_model_checks_its_inputs_and_can_be_copied(files: Path, federation: FederatedModule) -> None:
    path = files / "b.onnx"
    export_submodel(federation, "b", path)
    loaded = hetfl.load(path)
    inputs = torch.rand(3, 1, 8, 8)
    assert torch.equal(copy.deepcopy(loaded)(inputs), loaded(inputs))
    for wrong in (inputs.double(), inputs[0], torch.rand(3, 1, 9, 9)):
        with pytest.raises(ValueError, match=r"^Expected a batch of tensor\(float\) .* but got torch") as error:
            loaded(wrong)
        assert "\n" not in str(error.value)


def test_an_onnx_file_of_random_bytes_is_refused(files: Path) -> None:
    with pytest.raises(ConfigurationError, match="Expected an ONNX model that onnxruntime can run but got: "):
        Onnx().decode(b"junk", read_card(files / "b.onnx.json"), None)


def test_a_full_disk_keeps_the_previous_file_and_leaves_no_other(
    federation: FederatedModule, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files / "b.safetensors"
    before = {each.name: each.read_bytes() for each in files.iterdir()}

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fsync, calls = os.fsync, 0

    def full_for_the_card(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            full()
        fsync(descriptor)

    for operation, fault in [("os.fsync", full), ("os.replace", full), ("os.fsync", full_for_the_card)]:
        with monkeypatch.context() as broken:
            broken.setattr(operation, fault)
            with pytest.raises(OSError, match="No space left"):
                export_submodel(federation, "a", path)
        assert {each.name: each.read_bytes() for each in files.iterdir()} == before


def test_a_file_that_reads_back_differently_is_not_kept(
    federation: FederatedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Safetensors.encode

    def off_by_one_bit(self: Safetensors, *args: Any) -> bytes:
        tensors = safetensors.torch.load(encode(self, *args))
        tensors["classifier.weight"][0] = torch.nextafter(tensors["classifier.weight"][0], torch.tensor(9.0))
        return safetensors.torch.save(tensors)

    monkeypatch.setattr(Safetensors, "encode", off_by_one_bit)
    with pytest.raises(ConfigurationError, match=r"framework's outputs \(64, 10\) from .*a\.safetensors but got"):
        export_submodel(federation, "a", tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
