"""Exported sub-models: the framework's outputs in every format, and the card's content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.numpy
import torch
from lightning import Trainer
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

import hetfl
from hetfl import ConfigurationError, FederatedModule
from hetfl.data import FederatedDataModule
from hetfl.export import FORMATS, export_submodel
from hetfl.export.card import read_card
from hetfl.fleet import Fixed
from tests.conftest import small_data, small_levels, small_module

ROOT = Path(__file__).parent.parent
LEVELS = small_levels(1.0, 0.5, 0.25)


def trained(module: FederatedModule, *, rounds: int = 1, test: bool = True, **options: Any) -> FederatedModule:
    """Return a module after training and a test, as a user's script leaves it."""
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    shown = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=rounds, **{**settings, **shown, **options})
    data = small_data()
    trainer.fit(module, datamodule=data)
    if test:
        trainer.test(module, datamodule=data, verbose=False)
    return module


@pytest.fixture(scope="module")
def module() -> FederatedModule:
    """Return a federation of three levels; no client ever had the last level."""
    torch.set_num_threads(1)
    return trained(small_module(assignment=Fixed({"a": 1, "b": 1})), rounds=2)


@pytest.fixture(scope="module")
def exported(module: FederatedModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every level in every format."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    for level in LEVELS:
        for format in FORMATS:
            export_submodel(module, level, folder / f"{level}.{format}")
    return folder


def batch(module: FederatedModule, size: int | None = None) -> Tensor:
    """Return the first test samples, normalised."""
    data: FederatedDataModule = module.data
    inputs: Tensor = data.transform.eval(data.resident.all_test.inputs[:size])
    return inputs


def roundtrip(module: FederatedModule, level: str, path: Path, net: Any = None) -> nn.Module:
    export_submodel(module, level, path)
    return hetfl.load(path, net)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_level_in_every_format_has_the_logits_of_the_framework(
    module: FederatedModule, exported: Path, level: str, format: str
) -> None:
    loaded = hetfl.load(exported / f"{level}.{format}")
    assert not loaded.training
    with torch.no_grad():
        for size in (1, 7, None):
            inputs = batch(module, size)
            expected = module.predict(module.submodel(level), inputs)
            got = loaded(inputs)
            assert got.shape == (len(inputs), 10)
            assert torch.equal(got, expected) or format != "safetensors"
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        # The accuracy in the test's table, computed again.
        correct = (got.argmax(1) == module.data.resident.all_test.targets).sum().item()
    measured = module.trainer.callback_metrics[f"test/accuracy_by_level/{level}"].item()
    assert correct / 360 == pytest.approx(measured, abs=1e-6)
    card = json.loads((exported / f"{level}.{format}.json").read_text())
    assert card["score"] == {"test/accuracy": pytest.approx(correct / 360, abs=1e-6), "samples": 360}


def test_a_safetensors_file_has_the_bits_of_the_net(module: FederatedModule, exported: Path) -> None:
    loaded = hetfl.load(exported / "b.safetensors")
    arrays = safetensors.numpy.load_file(exported / "b.safetensors")
    submodel = module.submodel("b")
    expected = {**submodel.state_dict(), **dict(submodel.named_buffers())}  # without static batch norm's buffers
    assert arrays.keys() == expected.keys()
    assert sum(array.size for name, array in arrays.items() if not name.endswith((".mean", ".var"))) == 450
    for name, tensor in {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}.items():
        assert tensor.detach().numpy().tobytes() == arrays[name].tobytes() == expected[name].numpy().tobytes()


def test_the_files_load_without_hetfl_and_contain_no_machine_paths(exported: Path) -> None:
    for path in exported.iterdir():
        assert str(ROOT).encode() not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
    graph = onnx.load(exported / "b.onnx")
    onnx.checker.check_model(graph, full_check=True)
    dimensions = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.input]
    assert dimensions == [["batch", 1, 8, 8]]


def test_the_same_federation_gives_the_same_files(module: FederatedModule, exported: Path, tmp_path: Path) -> None:
    assert len(list(exported.iterdir())) == 2 * len(LEVELS) * len(FORMATS)
    random = torch.get_rng_state()
    for format in FORMATS:
        roundtrip(module, "c", tmp_path / f"c.{format}")
    assert torch.equal(torch.get_rng_state(), random)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (exported / path.name).read_bytes()


def test_the_card_describes_the_file(exported: Path) -> None:
    card = json.loads((exported / "c.safetensors.json").read_text())
    assert len(card.pop("sha256")) == 64
    assert card.pop("score")["samples"] == 360
    transform = {"mean": [0.3053], "std": [0.376], "padding": 0, "flip": False, "maximum": 16.0}
    net = {"in_channels": 1, "num_classes": 10, "hidden": [8, 16], "norm": "static_batch", "width": 0.25}
    assert card == {
        "card": 1,
        "file": "c.safetensors",
        "level": {"name": "c", "width": 0.25, "depth": None, "density": 1.0, "rank": None},
        "method": "hetfl.HeteroFL",
        "rounds": 2,
        "net": {"class": "hetfl.models.ConvNet", "arguments": net},
        "parameters": 158,
        "dtype": "float32",
        "input": {
            "shape": [1, 8, 8],
            "dtype": "uint8",
            "normalisation": {"class": "hetfl.data.ImageTransform", "arguments": transform},
        },
        "classes": 10,
        "hetfl": hetfl.__version__,
    }


def test_loaded_predictions_cannot_be_trained(exported: Path) -> None:
    whole = hetfl.load(exported / "c.safetensors")
    assert whole.train().training
    assert all(parameter.requires_grad for parameter in whole.parameters())
    loaded = hetfl.load(exported / "c.onnx")
    assert not loaded.eval().training
    with pytest.raises(ConfigurationError, match="Expected evaluation mode"):
        loaded.train()


def test_export_is_refused_without_statistics_of_the_current_model(tmp_path: Path) -> None:
    new = small_module()
    with pytest.raises(ConfigurationError, match="that a trainer has trained or tested"):
        export_submodel(new, "a", tmp_path / "a.onnx")
    module = trained(new, test=False, check_val_every_n_epoch=2)
    with pytest.raises(
        ConfigurationError, match=r"present model for level a .* trainer.validate or trainer.test, which gather"
    ):
        export_submodel(module, "a", tmp_path / "a.onnx")
    module.trainer.validate(module, datamodule=module.data, verbose=False)
    assert export_submodel(module, "a", tmp_path / "a.safetensors").score is None
    with torch.no_grad():
        module.net.get_parameter("classifier.bias").add_(1.0)
    with pytest.raises(ConfigurationError, match="statistics of the present model"):
        export_submodel(module, "a", tmp_path / "a.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "a.safetensors.json"}


class ExportEveryRound(Callback):
    """Exports at the end of every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FederatedModule)
        export_submodel(pl_module, "b", self.folder / f"{pl_module.models.version}.safetensors")


def test_exporting_during_a_run_does_not_change_the_run(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    watched = trained(small_module(), rounds=2, callbacks=[ExportEveryRound(tmp_path)])
    alone = trained(small_module(), rounds=2)
    for one, two in zip(watched.net.parameters(), alone.net.parameters(), strict=True):
        assert torch.equal(one, two)
    inputs = batch(alone, 7)
    assert torch.equal(hetfl.load(tmp_path / "2.safetensors")(inputs), alone.submodel("b")(inputs))
    assert not torch.equal(hetfl.load(tmp_path / "1.safetensors")(inputs), alone.submodel("b")(inputs))


def test_missing_packages_are_named(
    module: FederatedModule, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"got no onnx, onnxscript, onnxruntime: pip install 'hetfl\[onnx\]'$"):
        export_submodel(module, "a", tmp_path / "a.onnx")
    with pytest.raises(ConfigurationError, match=r"Expected packages onnxruntime .* pip install 'hetfl\[onnx\]'"):
        hetfl.load(exported / "a.onnx")


def test_impossible_exports_are_refused(module: FederatedModule, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"level in \['a', 'b', 'c'\] but got 'z'"):
        export_submodel(module, "z", tmp_path / "z.onnx")
    with pytest.raises(ConfigurationError, match=r"ending in \.safetensors, \.onnx but got .*a\.h5"):
        export_submodel(module, "a", tmp_path / "a.h5")
    successors = r"^Expected a file ending in \.onnx .* or \.safetensors .* but got .*a\.pt2: pt2 files were of earlier"
    with pytest.raises(ConfigurationError, match=successors):
        export_submodel(module, "a", tmp_path / "a.pt2")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file is a file"):
        export_submodel(module, "a", tmp_path / "file" / "a.onnx")
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(ConfigurationError, match=r"a\.onnx, which is a folder"):
        export_submodel(module, "a", tmp_path / "a.onnx")


def test_a_score_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    module = trained(small_module(), test=False, limit_val_batches=0)
    module.trainer.test(module, datamodule=module.data, verbose=False)
    assert export_submodel(module, "c", tmp_path / "c.safetensors").score is not None
    module.trainer.callback_metrics["test/accuracy_by_level/c"] = torch.tensor(torch.nan)
    assert export_submodel(module, "c", tmp_path / "c.safetensors").score is None
    assert read_card(tmp_path / "c.safetensors.json").score is None


def test_personal_tensors_are_the_initial_ones_and_named(tmp_path: Path) -> None:
    module = trained(small_module(personal=["classifier.*"]))
    with pytest.warns(UserWarning, match=r"Personal tensors \(classifier\.\*\) have their initial values in .*c\.saf"):
        export_submodel(module, "c", tmp_path / "c.safetensors")
