"""Nets that prefixes cannot slice are refused, nets that they can are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.federation.levels import LevelSet
from hetfl.local.nesting import check_nesting
from hetfl.models import ConvNet, PreActResNet, scaled
from tests.conftest import small_levels


class Branches(nn.Module):
    """Concatenates two branches: the leading channels of the whole are the first branch's alone."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        c = scaled(8, width)
        self.left, self.right = nn.Conv2d(1, c, 3), nn.Conv2d(1, c, 3)
        self.merge = nn.Conv2d(2 * c, c, 1)
        self.classifier = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.classifier(F.relu(self.merge(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Flat(nn.Module):
    """Flattens before the classifier, channels last or first."""

    def __init__(self, width: float = 1.0, channels_last: bool = True) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.conv = nn.Conv2d(1, scaled(8, width), 3)
        self.classifier = nn.Linear(scaled(8, width) * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x.permute(0, 2, 3, 1) if self.channels_last else x
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """A net of the user's: layer norm, dropout, no convolution."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        h = scaled(32, width)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, h), nn.LayerNorm(h), nn.GELU(), nn.Dropout(0.5), nn.Linear(h, h), nn.ReLU()
        )
        self.classifier = nn.Linear(h, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Two heads over rows of pixels: a narrower net has narrower heads, not fewer."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        d = scaled(16, width)
        self.embed, self.attend = nn.Linear(8, d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.classifier = nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        return self.classifier(self.attend(x, x, x)[0].mean(1))  # type: ignore[no-any-return]


class NoAxis(nn.Module):
    """A net of one size."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


def check(factory: Callable[..., nn.Module], channels: int = 1, size: int = 8) -> None:
    levels = LevelSet(factory, small_levels(1.0, 0.7, 0.5), seed=0)
    inputs = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in levels.net.named_parameters()}
    for level in levels:
        check_nesting(levels.net, levels.build(level), levels.indices[level], inputs, level)
    assert all(torch.equal(p, before[name]) for name, p in levels.net.named_parameters())


@pytest.mark.parametrize("norm", ["static_batch", "batch", "group", "none"])
def test_the_projects_nets_nest(norm: str) -> None:
    def resnet(*, width: float = 1.0) -> nn.Module:
        if norm == "group" and width == 0.7:
            width = 0.75
        return PreActResNet(hidden=(16, 16, 32, 32), norm=norm, width=width)  # type: ignore[arg-type]

    def convnet(*, width: float = 1.0) -> nn.Module:
        if norm == "group" and width == 0.7:
            width = 0.75
        return ConvNet(hidden=(16, 32), norm=norm, width=width)  # type: ignore[arg-type]

    check(convnet)
    check(resnet, channels=3, size=16)


@pytest.mark.parametrize("factory", [MLP, lambda *, width=1.0: Flat(width, channels_last=False)])
def test_nets_of_users_that_nest_are_accepted(factory: Callable[..., nn.Module]) -> None:
    check(factory)


@pytest.mark.parametrize(
    ("factory", "tensor"), [(Branches, "merge.weight"), (Flat, "classifier.weight"), (Attention, "different outputs")]
)
def test_nets_that_do_not_nest_are_refused_and_the_tensor_is_named(
    factory: Callable[..., nn.Module], tensor: str
) -> None:
    with pytest.raises(ConfigurationError, match=tensor) as error:
        check(factory)
    assert "level b" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_net_without_the_axis_is_refused_and_the_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match="takes 'width', which levels of different width need"):
        LevelSet(NoAxis, small_levels(1.0, 0.5), seed=0)  # type: ignore[arg-type]
    assert len(LevelSet(NoAxis, small_levels(1.0), seed=0)) == 1  # type: ignore[arg-type]
