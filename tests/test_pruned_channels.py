"""Pruned channels: the net without them, runs that keep them at zero, wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import Adam

from hetfl import FedAvg, HeteroFL, Level
from hetfl.clustering import IFCA
from hetfl.errors import ConfigurationError
from hetfl.local import Executor, Sequential, Stacked
from hetfl.models import ConvNet
from hetfl.part import Part
from hetfl.parts import PartRule, PrunedChannels, PrunedGroup, RandomMask, RankedMask, RewoundMask, Rolling, VotedMask
from hetfl.parts.alternating_factors import AlternatingFactors
from hetfl.pruning import Cubic
from hetfl.pruning.channels.groups import channel_groups
from hetfl.schedule import Asynchronous
from hetfl.submodel import parameters_of
from hetfl.testing import check_part_rule
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
GONE = {8: [1, 6], 16: [0, 3, 12]}
"""By size of the group, the pruned channels of the small net."""


def images() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(net: nn.Module) -> list[PrunedGroup]:
    groups = channel_groups(net, images())
    return [PrunedGroup.of(group, GONE[group.size], parameters_of(net)) for group in groups]


def rule_of(rule: PartRule | None = None) -> PrunedChannels:
    return PrunedChannels(pruned(ConvNet(hidden=(8, 16))), rule)


def test_without_groups_the_rule_fulfils_the_contract_like_the_other_rule() -> None:
    check_part_rule(lambda: PrunedChannels([], RandomMask()))
    check_part_rule(lambda: PrunedChannels([], Rolling()), levels=small_levels(1.0, 0.5))


@pytest.mark.parametrize("level", ["a", "b"])
def test_a_part_computes_what_a_net_without_the_channels_computes(level: str) -> None:
    module = small_module(parts=rule_of(), levels=small_levels(1.0, 0.5))
    net = module.levels.build(level).eval()
    part = module.parts.part(level, 0, 3)
    for name, held in part.layout.views(part.spread(torch.ones(part.size))).items():
        net.get_parameter(name).data.mul_(held)
    sizes = (8, 16) if level == "a" else (4, 8)
    kept = [[c for c in range(size) if c not in GONE[of]] for size, of in zip(sizes, (8, 16), strict=True)]
    small: Any = ConvNet(hidden=[len(each) for each in kept], norm="none")
    whole: Any = ConvNet(hidden=sizes, norm="none")
    whole.load_state_dict({n: p for n, p in net.named_parameters() if n in dict(whole.named_parameters())})
    with torch.no_grad():
        for block, (before, after) in enumerate(zip([[0], kept[0]], kept, strict=True)):
            conv, of = small.blocks[block].conv, whole.blocks[block].conv
            conv.weight.copy_(of.weight[after][:, before])
            conv.bias.copy_(of.bias[after])
        small.classifier.weight.copy_(whole.classifier.weight[:, kept[1]])
        small.classifier.bias.copy_(whole.classifier.bias)
        torch.testing.assert_close(whole.eval()(images()), small.eval()(images()))


@pytest.mark.parametrize("executor", [Sequential, Stacked])
@pytest.mark.parametrize("kind", [FedAvg, HeteroFL])
def test_pruned_entries_stay_zero_and_all_others_train(
    fit: Fit, kind: type[FedAvg], executor: Callable[[], Executor]
) -> None:
    """With momentum and weight decay at the clients, and Adam on the server."""
    module = small_module(
        kind, parts=rule_of(), executor=executor(), server_optimizer=lambda p: Adam(p, lr=0.01, weight_decay=0.1)
    )
    before = {name: p.detach().clone() for name, p in parameters_of(module.net).items()}
    fit(module, small_data(), rounds=3)
    for name, parameter in parameters_of(module.net).items():
        gone = torch.zeros(parameter.shape, dtype=torch.bool)
        for group in pruned(module.net):
            for dim in group.tensors.get(name, []):
                gone.index_fill_(dim, torch.tensor(group.channels), True)
        assert bool((parameter[gone] == 0).all())
        assert bool((parameter[~gone] != before[name][~gone]).float().mean() > 0.9)


def gone(part: Part, net: nn.Module) -> Tensor:
    """Return which entries of a part's index belong to pruned channels, shape (D,)."""
    marks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in part.layout.shapes.items()}
    for group in pruned(net):
        for name, dims in group.tensors.items():
            for dim in dims:
                marks[name].index_fill_(dim, torch.tensor(group.channels), True)
    return torch.cat([mark.flatten() for mark in marks.values()])


@pytest.mark.parametrize("dense", [False, True])
def test_a_client_sends_what_the_other_rule_sends_without_the_channels(dense: bool) -> None:
    inner = RankedMask(complement=True, schedule=Cubic(begin=1, until=2) if dense else None)
    module = small_module(parts=rule_of(inner), levels={"a": Level("a"), "b": Level("b", density=0.3)})
    rule = module.parts
    whole = inner.part("b", 0, 0)
    expected, part = inner.sent(whole, "b", 0, 0), rule.part("b", 0, 0)
    sent = rule.sent(part, "b", 0, 0)
    every_D = torch.ones(part.layout.size, dtype=torch.bool)
    marks_D = gone(part, module.net)
    held_D, sent_D = (every_D if each.mask_D is None else each.mask_D for each in (part, sent))
    assert torch.equal(sent_D, (every_D if expected.mask_D is None else expected.mask_D) & ~marks_D)
    assert bool((held_D & ~marks_D).any())
    assert bool(sent_D.any())


def test_what_the_other_rule_declares_is_passed_on() -> None:
    twice = rule_of(rule_of(RankedMask(complement=True)))
    assert twice.trains_all
    assert rule_of(AlternatingFactors()).trains_sent
    assert {name: type(each) for name, each in twice.members().items()} == {
        "rule": PrunedChannels,
        "rule.rule": RankedMask,
    }
    rewound = RewoundMask()
    small_module(parts=rule_of(rewound), levels={"a": Level("a"), "b": Level("b", density=0.3)})
    rewound.begin_round(0, 0.1)
    rewound._rewound[3] = 0
    values = rule_of(rewound).first_values(3)
    assert values is not None
    assert values.keys() == parameters_of(ConvNet(hidden=(8, 16))).keys()


def test_a_schedule_refuses_a_rule_that_learns_behind_the_channels(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", density=0.3)}
    module = small_module(parts=rule_of(VotedMask()), levels=levels, schedule=Asynchronous())
    with pytest.raises(ConfigurationError, match="a part rule that does not learn with .* but got VotedMask"):
        fit(module, rounds=1)


def test_channels_are_pruned_in_every_global_model(fit: Fit) -> None:
    module = small_module(FedAvg, parts=rule_of(), levels=small_levels(1.0), clustering=IFCA(2))
    fit(module, rounds=1, limit_val_batches=0)
    index = module.levels.indices["a"]
    for net in module.models:
        vector_D = torch.cat([dict(net.named_parameters(), **dict(net.named_buffers()))[n].flatten() for n in index])
        assert not bool(vector_D[gone(index, net)].any())


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (PrunedGroup(4, [4], {}), r"Expected channels from 0 to 3 but got \[4\]"),
        (PrunedGroup(2, [0, 1], {}), "Expected a channel that stays of 2 but got all as pruned"),
        (PrunedGroup(8, [0], {"blocks.9.conv.weight": [0]}), "dimension 0 of 'blocks.9.conv.weight', which is none"),
        (PrunedGroup(5, [0], {"blocks.0.conv.weight": [0]}), r"with 5 channels .* \(8, 1, 3, 3\)"),
    ],
)
def test_channels_that_cannot_be_pruned_are_refused(group: PrunedGroup, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small_module(parts=PrunedChannels([group]), net=partial(ConvNet, hidden=(8, 16)))
