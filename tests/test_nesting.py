"""Nets that leading blocks cannot slice in width or depth are refused; other nets are accepted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import Level
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.local.nesting import check_nesting
from hetfl.models import ConvNet, MultiExitConvNet, MultiExitResNet, PreActResNet, scaled
from hetfl.models.exits import AttentionGate
from hetfl.testing import check_net
from tests.conftest import small_levels


class Branches(nn.Module):
    """Concatenates two branches: the leading channels of the sum belong to the first branch only."""

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
    """A user's net: layer norm, dropout, no convolution."""

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
    """Attention with two heads over rows of pixels; a narrower net has narrower heads, not fewer heads."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        d = scaled(16, width)
        self.embed, self.attend = nn.Linear(8, d), nn.MultiheadAttention(d, 2, batch_first=True)
        self.classifier = nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0])
        return self.classifier(self.attend(x, x, x)[0].mean(1))  # type: ignore[no-any-return]


class NoAxis(nn.Module):
    """A net of a single size."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class Exits(nn.Module):
    """A linear layer per stage and a linear exit for each: the right net, and base class of the wrong ones below."""

    def __init__(self, depth: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c, self.exits = scaled(8, width), depth
        self.stages = nn.ModuleList(nn.Linear(64 if i == 0 else c, c) for i in range(depth))
        self.heads = nn.ModuleDict({self.name(i, depth): nn.Linear(c, 10) for i in range(depth)})

    def name(self, stage: int, depth: int) -> str:
        return str(stage)

    def read(self, features: list[Tensor], stage: int) -> Tensor:
        return features[stage]

    def forward(self, x: Tensor) -> Tensor:
        x, features = x.flatten(1), []
        for stage in self.stages:
            x = F.relu(stage(x))
            features.append(x)
        heads = [self.heads[self.name(i, len(features))] for i in range(len(features))]
        return torch.stack([head(self.read(features, i)) for i, head in enumerate(heads)])


class ReadsLater(Exits):
    """Every exit reads the next stage, if there is one."""

    def read(self, features: list[Tensor], stage: int) -> Tensor:
        return features[min(stage + 1, len(features) - 1)]


class ReadsAll(Exits):
    """Every exit reads the sum of all stages."""

    def read(self, features: list[Tensor], stage: int) -> Tensor:
        return torch.stack([feature + 1 for feature in features]).sum(0)


class CountsFromTheEnd(Exits):
    """The deepest exit of every net has the name 0."""

    def name(self, stage: int, depth: int) -> str:
        return str(depth - 1 - stage)


class DeepestFirst(Exits):
    """Stacks the outputs of the deepest exit first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(0)


class OneExitAlone(Exits):
    """Does not stack the output of a single exit."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(0)


class AddsItsGate(nn.Module):
    """Adds a gate where the project's nets multiply by it: a channel without weights gets sigmoid(0) = 1/2."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, scaled(8, width), 1)
        self.gate = AttentionGate(scaled(8, width), "static_batch", width)
        self.classifier = nn.Linear(scaled(8, width), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.sigmoid(self.gate(x))
        norm = x.norm(dim=1).mean((1, 2))
        return self.classifier(x.mean((2, 3))) / norm.unsqueeze(1)  # type: ignore[no-any-return]


AXES = {
    f"{width:.0%}-{depth}".replace("%", ""): Level("", width, depth)
    for width, depth in itertools.product((1.0, 0.5, 0.25), (3, 2, 1))
    if (width, depth) != (1.0, 3)
}


def check(
    factory: Callable[..., nn.Module], channels: int = 1, size: int = 8, sizes: dict[str, Level] | None = None
) -> None:
    levels = LevelSet(factory, sizes or small_levels(1.0, 0.7, 0.5), seed=0)
    inputs = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(1))
    before = {name: p.clone() for name, p in levels.net.named_parameters()}
    for level in levels:
        check_nesting(levels.net, levels.build(level), levels.indices[level], inputs, level)
    assert all(torch.equal(p, before[name]) for name, p in levels.net.named_parameters())


@pytest.mark.parametrize(
    ("net", "shape", "depths"),
    [
        (partial(ConvNet, hidden=(8, 16)), (1, 8, 8), ()),
        (partial(PreActResNet, in_channels=1, hidden=(4, 4, 8, 8), norm="none"), (1, 8, 8), ()),
        (partial(MultiExitConvNet, hidden=(8, 8)), (1, 8, 8), (2, 1)),
        (MLP, (64,), ()),
    ],
)
def test_every_net_of_the_project_fulfils_the_contract(
    net: Callable[..., nn.Module], shape: tuple[int, ...], depths: tuple[int, ...]
) -> None:
    check_net(net, torch.rand(4, *shape), 10, depths=depths)


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
def test_users_nets_that_nest_are_accepted(factory: Callable[..., nn.Module]) -> None:
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


@pytest.mark.parametrize("norm", ["static_batch", "batch", "group", "none"])
@pytest.mark.parametrize("net", [MultiExitConvNet, MultiExitResNet])
def test_the_projects_nets_nest_in_width_and_depth(net: type[nn.Module], norm: str) -> None:
    factory = partial(net, in_channels=1, num_classes=10, hidden=(16, 16, 32), norm=norm)
    check(factory, size=12, sizes={"a": Level("a"), **AXES})


def test_a_net_with_an_exit_per_stage_is_accepted() -> None:
    check(Exits, sizes={"a": Level("a"), **AXES})


@pytest.mark.parametrize(
    ("factory", "tensor"),
    [
        (ReadsLater, "100% of 'heads.0.weight'"),
        (ReadsAll, "different outputs from layer 'heads.0' on:"),
        (CountsFromTheEnd, "100% of 'heads.0.bias'"),
        (DeepestFirst, "100% of 'heads.0.bias'"),
        (OneExitAlone, "different outputs:"),
    ],
)
def test_nets_whose_exits_do_not_nest_are_refused(factory: Callable[..., nn.Module], tensor: str) -> None:
    with pytest.raises(ConfigurationError, match=tensor) as error:
        check(factory, sizes={"a": Level("a"), "b": Level("b", depth=1)})
    assert "level b" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gate_that_changes_absent_channels_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="different outputs"):
        check(AddsItsGate)


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("factory", [Branches, AddsItsGate])
def test_fewer_samples_of_large_images_are_enough_to_refuse(factory: Callable[..., nn.Module], size: int) -> None:
    with pytest.raises(ConfigurationError, match="different outputs"):
        check(factory, size=size)


class OneChannelTooMany(PreActResNet):
    """Adds one channel of its last stage to the logit of the first class, which does not nest."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the logits."""
        last = self.stages(self.stem(x_NCHW))[:, -1].mean((1, 2))
        return super().forward(x_NCHW) + F.pad(last.unsqueeze(1), (0, 9))


def test_a_single_wrong_channel_in_a_deep_net_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="different outputs"):
        check(partial(OneChannelTooMany, hidden=(8, 8, 8, 8)), channels=3, size=32)
