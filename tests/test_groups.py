"""Groups of channels: expectations by hand, and all invariant sets of dimensions of a small net by brute force."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.models import ConvNet, MultiExitConvNet, PreActResNet, Transformer
from hetfl.models.exits import SeparableConv
from hetfl.pruning.channels.groups import Group, channel_groups
from hetfl.submodel import state_of
from hetfl.tree import Tree


def images(channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))


def written(groups: list[Group]) -> list[str]:
    """Return each group as text: its size, then its dimensions, with * for reading and the block if it is above 1."""
    texts = []
    for group in groups:
        members = [
            f"{m.tensor}{'*' if m.reads else ''}[{m.dim}]{'' if m.block == 1 else f'x{m.block}'}" for m in group.members
        ]
        texts.append(" ".join([str(group.size), *members]))
    return texts


def test_a_conv_net_has_a_group_per_convolution() -> None:
    groups = channel_groups(ConvNet(hidden=(4, 6), num_classes=4), images())
    assert written(groups) == [
        "4 blocks.0.conv.weight[0] blocks.0.conv.bias[0] blocks.0.norm.weight[0] blocks.0.norm.bias[0] "
        "blocks.1.conv.weight*[1]",
        "6 blocks.1.conv.weight[0] blocks.1.conv.bias[0] blocks.1.norm.weight[0] blocks.1.norm.bias[0] "
        "classifier.weight*[1]",
    ]


def test_the_layers_that_a_residual_stage_adds_up_are_one_group() -> None:
    groups = channel_groups(PreActResNet(hidden=(4, 4, 6, 10), norm="none"), images(3, 16))
    inner = [
        f"{size} stages.{stage}.{block}.conv1.weight[0] stages.{stage}.{block}.conv2.weight*[1]"
        for stage, size in enumerate((4, 4, 6, 10))
        for block in (0, 1)
    ]
    outer = [
        "4 stem.weight[0] stages.0.0.conv1.weight*[1] stages.0.0.conv2.weight[0] stages.0.1.conv1.weight*[1] "
        "stages.0.1.conv2.weight[0] stages.1.0.conv1.weight*[1] stages.1.0.shortcut.weight*[1]",
        *(
            f"{size} stages.{stage}.0.conv2.weight[0] stages.{stage}.0.shortcut.weight[0] "
            f"stages.{stage}.1.conv1.weight*[1] stages.{stage}.1.conv2.weight[0] {reader}"
            for stage, size, reader in (
                (1, 4, "stages.2.0.conv1.weight*[1] stages.2.0.shortcut.weight*[1]"),
                (2, 6, "stages.3.0.conv1.weight*[1] stages.3.0.shortcut.weight*[1]"),
                (3, 10, "classifier.weight*[1]"),
            )
        ),
    ]
    assert sorted(written(groups)) == sorted(inner + outer)


def test_a_depthwise_convolution_belongs_to_the_group_of_its_input() -> None:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        SeparableConv(3, 5, 1, "none", 1.0),
        nn.Conv2d(5, 10, 3, groups=5),  # two filters per channel
        nn.Flatten(),
        nn.Linear(10 * 36, 3),
    )
    assert written(channel_groups(net, images(2))) == [
        "3 0.weight[0] 0.bias[0] 1.weight[0] 1.bias[0] 2.depthwise.weight[0] 2.pointwise.conv.weight*[1] "
        "1.running_mean[0] 1.running_var[0]",
        "5 2.pointwise.conv.weight[0] 3.weight[0]x2 3.bias[0]x2 5.weight*[1]x72",
    ]


class Flat(nn.Module):
    """Maps flattened with the channels first or last, before two linear layers."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.conv, self.channels_last = nn.Conv2d(1, 3, 3), channels_last
        self.hidden, self.classifier = nn.Linear(3 * 36, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x.movedim(1, -1) if self.channels_last else x
        logits: Tensor = self.classifier(F.relu(self.hidden(x.flatten(1))))
        return logits


def test_a_flattened_map_has_a_block_per_channel_if_channels_come_first() -> None:
    hidden = "3 hidden.weight[0] hidden.bias[0] classifier.weight*[1]"
    first = channel_groups(Flat(channels_last=False), images())
    assert written(first) == ["3 conv.weight[0] conv.bias[0] hidden.weight*[1]x36", hidden]
    assert first[0].members[-1].positions(torch.tensor([0, 2])).tolist() == [*range(36), *range(72, 108)]
    assert written(channel_groups(Flat(channels_last=True), images())) == [hidden]


def test_a_transformer_has_a_group_of_tokens_and_groups_within_each_block() -> None:
    net = Transformer(30, 5, channels=8, heads=2, feed_forward=8, layers=1, max_length=6)
    tokens = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(0))
    attention, forward = "blocks.0.attention", "blocks.0.feed_forward"
    assert written(channel_groups(net, tokens)) == [
        f"8 embedding.position[1] embedding.token.weight[1] {attention}_norm.weight[0] {attention}_norm.bias[0] "
        f"{attention}.qkv_weight*[3] {attention}.out_weight[0] {attention}.out_bias[0] {forward}_norm.weight[0] "
        f"{forward}_norm.bias[0] {forward}.0.weight*[1] {forward}.3.weight[0] {forward}.3.bias[0] norm.weight[0] "
        "norm.bias[0] classifier.weight*[1]",
        f"2 {attention}.qkv_weight*[2] {attention}.out_weight*[1]",
        f"4 {attention}.qkv_weight[0] {attention}.out_weight*[2]",
        f"8 {forward}.0.weight[0] {forward}.0.bias[0] {forward}.3.weight*[1]",
    ]


class Tangled(nn.Module):
    """Layers whose dimensions are all of size 3, with a sum, a gate, a scale of its own, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate = (nn.Linear(3, 3) for _ in range(3))
        self.scale = nn.Parameter(torch.rand(3))
        self.last = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x + torch.relu(self.second(x))
        logits: Tensor = self.last(self.scale * torch.sigmoid(self.gate(x)) * torch.tanh(self.gate(x)))
        return logits


def invariant_sets(net: nn.Module, inputs: Tree) -> set[frozenset[tuple[str, int]]]:
    """Return the smallest sets of dimensions of size 3 that can be permuted without a change of the outputs."""
    tensors = state_of(net)
    dims = [(name, dim) for name, tensor in tensors.items() for dim in range(tensor.dim())]
    expected, found = net(inputs), set[frozenset[tuple[str, int]]]()
    for chosen in chain.from_iterable(combinations(dims, count) for count in range(1, len(dims) + 1)):
        if any(each <= set(chosen) for each in found):
            continue
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        for name, dim in chosen:
            tensors[name].copy_(tensors[name].roll(1, dim))
        if torch.allclose(net(inputs), expected, rtol=1e-9):
            found.add(frozenset(chosen))
        for name, tensor in tensors.items():
            tensor.copy_(before[name])
    return found


@torch.no_grad()
def test_groups_are_the_smallest_sets_of_dimensions_that_can_be_permuted() -> None:
    torch.manual_seed(0)
    net, inputs = Tangled().double(), torch.rand(4, 3, dtype=torch.float64)
    groups = channel_groups(net, inputs)
    assert {frozenset((m.tensor, m.dim) for m in group.members) for group in groups} == invariant_sets(net, inputs)
    assert len(groups) == 2


def test_only_given_dimensions_are_in_groups_and_the_net_is_not_changed() -> None:
    net = MultiExitConvNet(hidden=(4, 6)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    every = channel_groups(net, images())
    given = {(member.tensor, member.dim) for member in every[1].members}
    assert channel_groups(net, images(), {*given, ("stages.1.classifier.bias", 0)}) == [every[1]]
    assert net.training
    assert all(
        torch.equal(value, before[name]) or bool(value.isnan().all()) for name, value in net.state_dict().items()
    )


class Moody(nn.Module):
    """Calls its layers in an order that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x) if x.max() < 2 else self.one(self.two(x))  # type: ignore[no-any-return]


def test_a_net_whose_calls_depend_on_values_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a net that calls its layers in one order.* but got Linear"):
        channel_groups(Moody(), torch.rand(4, 3))
