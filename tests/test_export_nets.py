"""Exported sub-models of many kinds of nets, methods, data and precisions."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import hetfl
from hetfl import ConfigurationError, FedAvg
from hetfl.data import Plain, TensorData
from hetfl.export import export_submodel
from hetfl.export.constructor import construct
from hetfl.models import ConvNet, PreActResNet
from hetfl.types import ClientContext
from tests.conftest import small_levels, small_module, small_net
from tests.test_export import batch, roundtrip, trained

FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "class": lambda: ConvNet(1, 10, (8, 16), "group", 0.5),
    "partial": functools.partial(ConvNet, 1, 10, (8, 16), norm="group", width=0.5),
    "partial of a partial": functools.partial(functools.partial(ConvNet, hidden=[8, 16]), norm="group", width=0.5),
    "function": lambda: small_net(width=0.5, norm="group"),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_constructor_arguments_are_recorded_for_every_kind_of_call(factory: str) -> None:
    before = ConvNet.__init__
    net, constructor = construct(FACTORIES[factory])
    expected = {"in_channels": 1, "num_classes": 10, "hidden": [8, 16], "norm": "group", "width": 0.5}
    assert (constructor.path, constructor.arguments) == ("hetfl.models.ConvNet", expected)
    assert isinstance(net, ConvNet)
    assert ConvNet.__init__ is before


def test_arguments_without_a_json_form_are_recorded_as_none() -> None:
    assert construct(lambda: nn.Sequential(nn.Linear(2, 2)))[1].arguments is None
    assert construct(lambda: nn.Linear(2, 2, dtype=torch.float64))[1].arguments is None
    inherited, constructor = construct(Inherited)
    assert constructor.arguments == {"start_dim": 1, "end_dim": -1}
    assert "__init__" not in vars(type(inherited))


class Inherited(nn.Flatten):
    """A net without its own constructor."""


NETS: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "running averages": (functools.partial(ConvNet, hidden=(8, 16), norm="batch"), ("safetensors", "onnx")),
    "group norm": (functools.partial(ConvNet, hidden=(16, 16), norm="group"), ("safetensors", "onnx")),
    "resnet": (functools.partial(PreActResNet, 1, hidden=(8, 8, 8, 8)), ("safetensors", "onnx")),
}


@pytest.mark.parametrize("name", ["running averages", "group norm", pytest.param("resnet", marks=pytest.mark.slow)])
def test_nets_of_other_kinds_export_with_equal_outputs(name: str, tmp_path: Path) -> None:
    net, formats = NETS[name]
    module = trained(small_module(net=net, levels=small_levels(1.0, 0.5)))
    inputs = batch(module, 9)
    with torch.no_grad():
        expected = module.predict(module.submodel("b"), inputs)
        for format in formats:
            got = roundtrip(module, "b", tmp_path / f"b.{format}")(inputs)
            assert torch.equal(got, expected) or format != "safetensors"
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class TwoHeads(nn.Module):
    """A user's net that returns the logits of two heads, shape (2, N, K)."""

    exits = 2

    def __init__(self, hidden: int = 12, width: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(64, round(hidden * width))
        self.heads = nn.ModuleList(nn.Linear(round(hidden * width), 10) for _ in range(2))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.layer(x_NCHW.flatten(1)).relu()
        return torch.stack([head(features) for head in self.heads])


class MeanOfHeads(FedAvg):
    """A method whose prediction differs from its net's outputs."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return torch.stack([F.cross_entropy(logits, targets) for logits in outputs]).sum()

    def predict(self, net: nn.Module, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            mean: Tensor = net(inputs).mean(0)
            return mean


def test_a_loaded_net_returns_raw_outputs_and_a_loaded_prediction_applies_the_method(tmp_path: Path) -> None:
    levels = small_levels(1.0, 0.5)
    module = trained(small_module(MeanOfHeads, net=TwoHeads, levels=levels), test=False, limit_val_batches=0)
    inputs = batch(module, 7)
    with torch.no_grad():
        outputs = module.submodel("b")(inputs)
        assert outputs.shape == (2, 7, 10)
        assert torch.equal(roundtrip(module, "b", tmp_path / "b.safetensors", TwoHeads)(inputs), outputs)
        got = roundtrip(module, "b", tmp_path / "b.onnx")(inputs)
        torch.testing.assert_close(got, outputs.mean(0), rtol=1e-5, atol=1e-5)


def test_a_users_net_must_be_given_to_load(tmp_path: Path) -> None:
    module = small_module(MeanOfHeads, net=functools.partial(TwoHeads, hidden=6), levels=small_levels(1.0))
    trained(module, test=False, limit_val_batches=0)
    path = tmp_path / "a.safetensors"
    export_submodel(module, "a", path)
    with pytest.raises(ConfigurationError, match=r"net=MyNet.*TwoHeads\(hidden=6, width=1.0\), and only") as error:
        hetfl.load(path)
    assert "\n" not in str(error.value)
    assert torch.equal(hetfl.load(path, TwoHeads).layer.weight, module.submodel("a").layer.weight)  # type: ignore[union-attr, arg-type]
    with pytest.raises(
        ConfigurationError, match=r"tensor 'layer.weight' .* float32 \(12, 64\) but got float32 \(6, 64\)"
    ):
        hetfl.load(path, functools.partial(TwoHeads))
    with pytest.raises(ConfigurationError, match=r"Expected a net from the card's .*TwoHeads.* but got: .*'hidden'"):
        hetfl.load(path, nn.Flatten)  # type: ignore[arg-type]
    widthless: Any = lambda: TwoHeads(hidden=6)  # noqa: E731
    assert isinstance(hetfl.load(path, widthless), TwoHeads)
    export_submodel(module, "a", tmp_path / "a.onnx")
    with pytest.raises(ConfigurationError, match="no net for"):
        hetfl.load(tmp_path / "a.onnx", TwoHeads)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", torch.float32)])
def test_every_precision_exports_with_equal_outputs(precision: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = trained(small_module(), precision=precision)
    inputs = batch(module, 7).to(dtype)
    with torch.no_grad():
        expected = module.predict(module.submodel("b"), inputs)
        assert expected.dtype == dtype
        loaded = roundtrip(module, "b", tmp_path / "b.safetensors")
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
        torch.testing.assert_close(loaded(inputs), expected, rtol=0, atol=0)
    assert json.loads((tmp_path / "b.safetensors.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    if dtype == torch.float64:
        with pytest.raises(ConfigurationError, match=r"onnxruntime \(it has few operators for float64\) can run"):
            export_submodel(module, "b", tmp_path / "b.onnx")


class Noisy(ConvNet):
    """A net with random outputs."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return super().forward(x_NCHW) + torch.rand(10)


def test_an_exported_file_with_wrong_outputs_is_refused_and_removed(tmp_path: Path) -> None:
    module = trained(
        small_module(FedAvg, net=functools.partial(Noisy, hidden=(4,)), levels=small_levels(1.0), check_nesting=False)
    )
    with pytest.raises(ConfigurationError, match=r"framework's outputs .* but got a difference of 0\.\d+"):
        export_submodel(module, "a", tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_data_and_transforms_are_recorded_in_the_card(tmp_path: Path) -> None:
    torch.manual_seed(0)
    samples, classes = torch.rand(300, 5), torch.arange(300) % 3

    class Halved(Plain):
        def __init__(self, by: float) -> None:
            self._by = by

    plain = {"class": "hetfl.data.Plain", "arguments": {}}
    for transform, normalisation, format in ((None, plain, "onnx"), (Halved(2.0), None, "safetensors")):
        net: Any = lambda width=1.0: nn.Sequential(nn.Linear(5, 3))  # noqa: E731
        module = FedAvg(net)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        data = TensorData(
            train_inputs=samples,
            train_targets=classes,
            test_inputs=samples[:1],
            test_targets=classes[:1],
            num_classes=3,
            num_clients=10,
            transform=transform,
        )
        trainer.test(module, datamodule=data, verbose=False)
        card = export_submodel(module, "a", tmp_path / f"a.{format}")
        assert card.input == {"shape": [5], "dtype": "float32", "normalisation": normalisation}
        assert card.score is not None
        assert card.score["samples"] == 1
        with torch.no_grad():
            loaded = hetfl.load(tmp_path / f"a.{format}", net if format == "safetensors" else None)
            expected, got = module.net(samples), loaded(samples)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


class Placed(nn.Module):
    """A net with a layer of the name that tensors in other files have in ONNX."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.location = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.location(x.flatten(1))
        return logits


def test_a_layer_may_have_any_name_in_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(small_module(net=Placed, levels=small_levels(1.0)), test=False, limit_val_batches=0)
    inputs, path = batch(module, 3), tmp_path / "a.onnx"
    expected = module.submodel("a")(inputs).detach()
    torch.testing.assert_close(roundtrip(module, "a", path)(inputs), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(ConfigurationError, match="but got one that may name other files"):  # none can tell without onnx
        hetfl.load(path)
