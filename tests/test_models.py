"""Nets and layers: exact numbers of parameters, the Scaler, and static batch norm against NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hetfl.errors import ConfigurationError
from hetfl.models import ConvNet, PreActResNet, Scaler, StaticBatchNorm2d, make_norm, scaled
from hetfl.models.static_batch_norm import gathering, static_layers

WIDTHS = (1.0, 0.5, 0.25, 0.125, 0.0625)
CONVNET = (1_556_874, 391_370, 98_922, 25_274, 6_594)
RESNET18 = (11_172_170, 2_796_714, 701_018, 176_178, 44_510)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("width", "expected"), list(zip(WIDTHS, CONVNET, strict=True)))
def test_convnet_has_the_published_number_of_parameters(width: float, expected: int) -> None:
    assert count(ConvNet(width=width)) == expected


@pytest.mark.parametrize(("width", "expected"), list(zip(WIDTHS, RESNET18, strict=True)))
def test_resnet18_has_the_exact_number_of_parameters(width: float, expected: int) -> None:
    assert count(PreActResNet(width=width)) == expected


def test_resnet34_is_resnet18_with_eight_more_blocks() -> None:
    # A block of C channels at stride 1: two 3x3 convolutions without bias and two norms.
    def block(c: int) -> int:
        return 2 * 9 * c * c + 2 * 2 * c

    more = block(64) + 2 * block(128) + 4 * block(256) + block(512)
    assert count(PreActResNet(layers=34)) == RESNET18[0] + more


@pytest.mark.parametrize("net", [ConvNet, PreActResNet])
@pytest.mark.parametrize("norm", ["static_batch", "batch", "group", "none"])
def test_the_nets_return_one_logit_per_class(net: type[ConvNet | PreActResNet], norm: str) -> None:
    model = net(in_channels=2, num_classes=7, hidden=(8, 8, 16, 16), norm=norm, width=0.5)  # type: ignore[arg-type]
    assert model(torch.rand(3, 2, 16, 16)).shape == (3, 7)


@pytest.mark.parametrize("net", [ConvNet, PreActResNet])
@pytest.mark.parametrize("width", [1.0, 0.25])
def test_the_classifier_bias_starts_at_0_and_other_tensors_use_pytorch_defaults(
    net: type[ConvNet | PreActResNet], width: float
) -> None:
    torch.manual_seed(3)
    model = net(hidden=(8, 8, 16, 16), width=width)
    torch.manual_seed(3)
    for name, module in model.named_modules():
        drawn: nn.Module | None = None
        if isinstance(module, nn.Conv2d):
            sizes = module.in_channels, module.out_channels, module.kernel_size
            drawn = nn.Conv2d(*sizes, bias=module.bias is not None)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear):
            drawn = linear = nn.Linear(module.in_features, module.out_features)
            nn.init.zeros_(linear.bias)
        for part, value in ({} if drawn is None else dict(drawn.named_parameters())).items():
            assert torch.equal(module.get_parameter(part), value), f"{name}.{part}"
    assert not model.classifier.bias.any()


def test_channels_are_rounded_up_except_for_binary_rounding_noise() -> None:
    assert [scaled(10, w) for w in (0.3, 0.33, 0.01, 1.0)] == [3, 4, 1, 10]
    for hundredths in range(1, 101):
        assert scaled(100, hundredths / 100) == hundredths


@pytest.mark.parametrize("width", [0.0, -0.5, 1.01, float("nan")])
def test_a_width_out_of_range_is_refused(width: float) -> None:
    with pytest.raises(ConfigurationError, match="width"):
        ConvNet(width=width)


def test_the_scaler_divides_in_training_only() -> None:
    x = torch.rand(5)
    scaler = Scaler(0.25)
    assert torch.equal(scaler.train()(x), x / 0.25)
    assert torch.equal(scaler.eval()(x), x)


def test_the_scaler_only_matters_without_batch_norm_up_to_eps() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4, 4)
    with_norm = nn.Sequential(Scaler(0.25), StaticBatchNorm2d(3)).train()
    assert torch.allclose(with_norm(x), StaticBatchNorm2d(3).train()(x), atol=1e-4)
    without = nn.Sequential(Scaler(0.25), nn.Identity()).train()
    assert torch.equal(without(x), 4 * x)


def test_static_batch_norm_equals_numpy_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    layer = StaticBatchNorm2d(3).double()
    layer.weight.data.uniform_(0.5, 2.0)
    layer.bias.data.uniform_(-1.0, 1.0)
    batches = [torch.randn(n, 3, 2, 2, dtype=torch.float64) * 3 + 1 for n in (4, 7, 2)]
    w, b = (p.detach().numpy().reshape(1, 3, 1, 1) for p in (layer.weight, layer.bias))

    def normalised(x: np.ndarray, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        out: np.ndarray = (x - mean.reshape(1, 3, 1, 1)) / np.sqrt(var.reshape(1, 3, 1, 1) + 1e-5) * w + b
        return out

    x = batches[0].numpy()
    expected = normalised(x, x.mean((0, 2, 3)), x.var((0, 2, 3)))
    assert np.allclose(layer.train()(batches[0]).detach().numpy(), expected, atol=1e-12)

    with torch.no_grad(), gathering(layer):
        for batch in batches:
            layer(batch)
        sums = layer.sums
    assert sums is not None
    assert sums.batches == 3
    mean = np.mean([batch.numpy().mean((0, 2, 3)) for batch in batches], axis=0)
    var = np.mean([batch.numpy().var((0, 2, 3), ddof=1) for batch in batches], axis=0)
    layer.load(sums)
    got = layer.eval()(batches[1]).detach().numpy()
    assert np.allclose(got, normalised(batches[1].numpy(), mean, var), atol=1e-12)
    # Single samples give the same outputs: the batch's statistics are not used.
    alone = torch.cat([layer(batches[1][i : i + 1]) for i in range(7)])
    assert np.allclose(alone.detach().numpy(), got, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_variances_of_values_far_from_zero_are_precise(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Activations have a mean a hundred times their spread, and under autocast they are bfloat16."""
    torch.manual_seed(0)
    layer = StaticBatchNorm2d(3)
    x = (torch.randn(10, 3, 28, 28) + 100).to(dtype).to(memory_format=layout)
    with torch.no_grad(), gathering(layer), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert layer(x).dtype == dtype
        sums = layer.sums
    expected = x.double().numpy()
    assert sums is not None
    assert sums.mean_C.numpy() == pytest.approx(expected.mean((0, 2, 3)), rel=5e-6)
    assert sums.var_C.numpy() == pytest.approx(expected.var((0, 2, 3), ddof=1), rel=1e-4)


def test_evaluation_without_statistics_is_refused_and_statistics_are_not_sent() -> None:
    layer = StaticBatchNorm2d(2)
    with pytest.raises(RuntimeError, match="statistics"):
        layer.eval()(torch.rand(2, 2, 1, 1))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_gathering_statistics_disables_the_scaler_and_changes_no_parameter() -> None:
    torch.manual_seed(0)
    net = ConvNet(hidden=(8, 8), width=0.5)
    before = {name: p.clone() for name, p in net.named_parameters()}
    seen = []
    layer = static_layers(net)["blocks.0.norm"]
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad(), gathering(net):
        net(x)
        conv = net.blocks[0].get_submodule("conv")(x)
    assert torch.equal(seen[0], conv)  # not divided by 0.5
    assert not net.training
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_unknown_norms_and_impossible_groups_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="'layer'"):
        make_norm("layer", 4)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="multiple of 4"):
        make_norm("group", 6)
    with pytest.raises(ConfigurationError, match="layers"):
        PreActResNet(layers=50)


def test_models_cannot_be_imported_under_a_second_name() -> None:
    root = Path(__file__).parent.parent
    for name in ("models", "aggregators"):
        done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"hetfl.{name}" in done.stderr
