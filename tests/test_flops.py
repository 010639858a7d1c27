"""FLOPs of multi-exit nets and of grouped convolutions, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hetfl import Level
from hetfl.fleet import Device
from hetfl.levels.level_set import LevelSet
from hetfl.local.flops import flops_per_sample, layer_shares
from hetfl.models import MultiExitConvNet
from hetfl.part import Part
from hetfl.parts.entry_seconds import entry_seconds
from hetfl.submodel import parameters_of


def test_flops_of_multi_exit_nets_by_hand() -> None:
    net = MultiExitConvNet(in_channels=1, num_classes=10, hidden=(4, 8))
    forward, training = flops_per_sample(net, torch.rand(3, 1, 8, 8))
    first, second = 2 * 64 * 9 * 1 * 4, 2 * 16 * 9 * 4 * 8
    exits = 2 * 16 * 9 * 4 + 2 * 16 * 4 * 8 + 2 * (2 * 8 * 10)
    assert forward == first + second + exits
    # Backward: gradients of weights and of inputs, except for the gradient of the images.
    assert training == 3 * (first + second + exits) - first


class ConvolutionPerChannel(nn.Module):
    """A depthwise convolution as one convolution per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(x[:, [c]]) for c, conv in enumerate(self.filters)], dim=1)


def test_flops_of_grouped_convolutions_equal_the_sum_over_groups() -> None:
    x = torch.rand(2, 6, 5, 5)
    stem = nn.Conv2d(6, 6, 1)
    depthwise = flops_per_sample(nn.Sequential(stem, nn.Conv2d(6, 6, 3, padding=1, groups=6)), x)
    assert depthwise == flops_per_sample(nn.Sequential(stem, ConvolutionPerChannel(6)), x)
    transposed = flops_per_sample(nn.ConvTranspose2d(6, 6, 3, stride=2, groups=3), x)
    # 25 pixels, each times 9 weights of 2 outputs; no gradient of the inputs.
    assert transposed == (2 * 25 * 6 * 9 * 2, 2 * 2 * 25 * 6 * 9 * 2)


class Inner(nn.Module):
    """A matrix of its own, and a weighted child."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(4, 4))
        self.child = nn.Linear(4, 12, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.child(x @ self.own)
        return output


class Mixed(nn.Module):
    """A layer within a layer, and a layer with the weight of another one."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.inner = Inner()
        self.first = nn.Linear(12, 12, bias=False)
        self.second = nn.Linear(12, 12, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(self.inner(x)))
        return output


def test_flops_of_layers_are_their_own() -> None:
    own, child, layer = 16, 48, 144
    total = own + child + 2 * layer
    shares = layer_shares(Mixed(), torch.rand(2, 4))
    assert shares == {
        "inner": own / total,
        "inner.child": child / total,
        "first": layer / total,
        "second": layer / total,
    }
    levels = LevelSet(Mixed, {"a": Level("a"), "b": Level("b", density=0.5)}, seed=0)
    levels.inspect(torch.rand(2, 4), (2, 12))
    index = levels.indices["b"]
    masks = {name: torch.zeros(size, dtype=torch.bool) for name, size in zip(index, index.layout.sizes, strict=True)}
    masks["inner.child.weight"][:] = True
    density = levels.flop_density("b", Part(index, torch.cat(list(masks.values()))))
    assert density == pytest.approx((child + layer) / total)  # the FLOPs of a second use count as dense


class TwoWeights(nn.Module):
    """One layer of two weights."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.layer = Products()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.one @ self.two


def test_the_seconds_of_a_layer_are_those_of_all_its_weights() -> None:
    levels = LevelSet(TwoWeights, {"a": Level("a")}, seed=0)
    levels.inspect(torch.rand(2, 4), (2, 8))
    device = Device(throughput=1.0, downlink=1e9, uplink=1e9)
    weights = parameters_of(levels.net)
    seconds = entry_seconds(levels, weights, 3.0, device)
    spent = sum(seconds[name] * each.numel() for name, each in weights.items())
    assert spent == pytest.approx(3.0 * levels.flops["a"][1], rel=1e-6)
