"""Samples that clients hold out, and the part rules of LotteryFL and of the hybrid Sub-FedAvg."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hetfl import FedAvg, Level
from hetfl.data import ClientData, FederatedDataModule, Samples
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.local import Stacked
from hetfl.models import ConvNet
from hetfl.parts import PartRule, PersonalMask, RewoundMask
from hetfl.pruning.channels import channel_groups
from hetfl.pruning.channels.masks import ScaledChannels
from hetfl.pruning.densities import Masks
from hetfl.selection import Uniform
from hetfl.submodel import parameters_of
from tests.conftest import small_data, small_module
from tests.data_cases import numbered, ready
from tests.mask_cases import DENSITY, LR, SIZES, STEPS, check, per_layer
from tests.reference.cases import Fit
from tests.reference.given import made_data
from tests.sparse_cases import WEIGHTS, Clients, Tensors, client_arrays, holder_mean, masked, trained

HELD_OUT = 0.3


class Split:
    """The clients' held-out samples, in place of those that they train on."""

    def __init__(self, data: FederatedDataModule) -> None:
        self.data, self.transform = data, data.transform

    def client_data(self, client: int) -> ClientData:
        return self.data.client_data(client, "validation")


def numbers(module: FederatedDataModule, split: Samples) -> list[set[int]]:
    of_clients = [module.client_data(client, split).inputs for client in range(module.num_clients)]
    return [set(inputs[:, 0].int().tolist()) for inputs in of_clients if isinstance(inputs, torch.Tensor)]


def test_clients_hold_out_a_fraction_of_their_own_samples() -> None:
    plain, module = (ready(numbered(num_clients=10, client_val_fraction=share)) for share in (0.0, 0.25))
    before, train, held_out = numbers(plain, "train"), numbers(module, "train"), numbers(module, "validation")
    assert [a | b for a, b in zip(train, held_out, strict=True)] == before
    assert [len(each) for each in held_out] == [round(0.25 * len(each)) for each in before]
    assert list(module.sizes) == [len(each) for each in train]
    assert not any(a & b for a, b in zip(train, held_out, strict=True))
    assert "held out by clients" in module.summary()
    few = ready(numbered(num_clients=60, client_val_fraction=0.25))  # two or three samples each: none can be spared
    assert not any(numbers(few, "validation"))
    with pytest.raises(ConfigurationError, match=re.escape("(client_val_fraction) in [0, 1) but got 1.0")):
        numbered(client_val_fraction=1.0)


def test_a_class_that_is_left_out_is_not_held_out_either() -> None:
    module = small_data(client_val_fraction=0.2, left_out_classes=[3])
    module.setup()
    held_out = [module.client_data(client, "validation").targets for client in range(module.num_clients)]
    assert sum(map(len, held_out)) > 20
    assert not any((targets == 3).any() for targets in held_out)


@pytest.mark.usefixtures("double_precision")
def test_lottery_fl_equals_numpy(fit: Fit) -> None:
    """A client that is accurate enough loses a third of its entries, and trains from the first values of the rest."""
    rule, masks, data = RewoundMask(step=1 / 3, accuracy=0.3), list[Tensors](), made_data(SIZES, (6,), 3)
    data.client_val_fraction = HELD_OUT

    def accuracy(theta: Tensors, inputs: Any, labels: Any) -> float:
        outputs = inputs @ theta["first.weight"].T @ theta["second.weight"].T + theta["second.bias"]
        return float((outputs.argmax(1) == labels).mean())

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        first, rewound = theta, list[list[bool]]()
        masks.extend([mask] * 4)
        for _ in range(5):
            begun = []
            for client in range(4):
                own, now = masks[client], density(masks[client])
                held_out = client_arrays(Split(data), client)  # type: ignore[arg-type]
                prunes = now > least and accuracy(masked(theta, own), *held_out) >= 0.3
                if prunes:
                    values = {n: np.where(own[n] > 0, abs(theta[n]), -1.0) for n in WEIGHTS}
                    masks[client] = per_layer(values, max(DENSITY, now * 2 / 3))
                begun.append(prunes)
            starts = [first if again else theta for again in begun]
            results = [
                trained(start, own, *arrays, lr=LR, steps=STEPS)
                for start, own, arrays in zip(starts, masks, clients.arrays, strict=True)
            ]
            theta = holder_mean(theta, results, masks, clients.sizes)
            rewound.append(begun)
        assert any(map(any, rewound[1:]))
        assert not all(map(all, rewound))
        return theta, mask

    def density(mask: Tensors) -> float:
        return float(sum(mask[name].sum() for name in WEIGHTS) / sum(mask[name].size for name in WEIGHTS))

    least = density(per_layer({"first.weight": np.ones((5, 6)), "second.weight": np.ones((3, 5))}))
    check(fit, rule, 5, play, data=data)
    for client, own in enumerate(masks):
        held = rule.of_client(client, DENSITY) or rule.held(DENSITY)
        assert all(np.array_equal(held[name].numpy(), own[name] > 0) for name in WEIGHTS)
    assert len({own["first.weight"].tobytes() for own in masks}) > 1


def test_an_accuracy_that_no_client_reaches_prunes_nothing(fit: Fit) -> None:
    for index, accuracy in enumerate((0.0, 1.0)):
        rule = PersonalMask(step=0.2, accuracy=accuracy)
        module = small_module(FedAvg, **sparse(rule))
        fit(module, small_data(client_val_fraction=0.3), rounds=2, name=f"{index}", limit_val_batches=0)
        assert rule.columns()["parts/density"] == pytest.approx(1.0 if accuracy else 0.6, abs=0.01)


def sparse(rule: PartRule, **changes: Any) -> dict[str, Any]:
    levels = {"a": Level("a"), "b": Level("b", density=0.5)}
    return {"levels": levels, "parts": rule, "assignment": Dynamic({"b": 1}), "selection": Uniform(12), **changes}


def test_stacked_clients_rewind_like_single_ones(fit: Fit) -> None:
    nets = []
    for index, changes in enumerate(({}, {"executor": Stacked()})):
        module = small_module(FedAvg, **sparse(RewoundMask(accuracy=0.0), **changes)).double()
        data = small_data(client_val_fraction=0.3)
        fit(module, data, rounds=2, name=f"{index}", limit_val_batches=0, precision="64-true")
        nets.append(module.net)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_masks_of_channels_cut_filters_and_what_reads_them() -> None:
    """The channels of the smallest scales are left out, with their rows, columns and blocks of features."""
    net = ConvNet(3, 4, hidden=[4, 6], norm="batch")
    values = {name: torch.ones_like(each) for name, each in parameters_of(net).items()}
    scales = [name for name, each in values.items() if each.dim() == 1 and "norm" in name and name.endswith("weight")]
    values[scales[0]], values[scales[1]] = torch.tensor([3.0, -1.0, 2.0, -4.0]), torch.arange(6.0)
    channels = ScaledChannels(channel_groups(net, torch.rand(2, 3, 8, 8)), values)
    masks = channels.masks(values, 0.5)
    first, second, last = (name for name, each in values.items() if each.dim() > 1)
    assert channels.convolutions == {first, second}
    for position, kept in enumerate([True, False, False, True]):
        assert bool(masks[first][position].all()) == bool(masks[first][position].any()) == kept
        assert bool(masks[second][3:, position].all()) == kept
    assert masks[second].flatten(1).any(1).tolist() == [False] * 3 + [True] * 3
    columns = masks[last].any(0).view(6, -1)
    assert columns.all(1).tolist() == columns.any(1).tolist() == [False] * 3 + [True] * 3
    with pytest.raises(ConfigurationError, match="Expected a net with norm layers"):
        ScaledChannels([], parameters_of(nn.Linear(3, 2)))


def test_the_hybrid_variant_prunes_channels_once_and_other_weights_by_steps(fit: Fit) -> None:
    rule = PersonalMask(step=0.2, channels=0.5, distance=0.0)
    module = small_module(FedAvg, **sparse(rule))
    masks, shrunk = list[dict[int, Masks | None]](), 0
    for _ in range(2):
        fit(module, rounds=1, name=f"{len(masks)}", limit_val_batches=0)
        masks.append({client: rule.of_client(client, 0.5) for client in range(12)})
    for client in range(12):
        early, late = masks[0][client], masks[1][client]
        assert early is not None
        assert late is not None
        weights = list(early)
        for name in weights[:-1]:  # convolutions
            assert torch.equal(early[name], late[name])
            filters = early[name].flatten(1).any(1)
            assert int(filters.count_nonzero()) == round(0.5 * len(filters))
        assert int(early[weights[-1]].count_nonzero()) == round(0.8 * 0.5 * early[weights[-1]].numel())
        shrunk += int(late[weights[-1]].count_nonzero()) == round(0.6 * 0.5 * late[weights[-1]].numel())
    assert shrunk > 6  # the others' smallest entries did not change


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda: RewoundMask(step=0.0), "Expected step in (0, 1)"),
        (lambda: RewoundMask(accuracy=1.5), "accuracy in [0, 1] but got 0.2, 1.5"),
        (lambda: PersonalMask(channels=1.0), "Expected channels in [0, 1)"),
        (lambda: PersonalMask(accuracy=-0.1), "accuracy in [0, 1] or null but got 0.0, -0.1"),
    ],
)
def test_wrong_settings_are_refused(rule: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        rule()


@pytest.mark.parametrize("rule", [RewoundMask(), PersonalMask(accuracy=0.5)])
def test_rules_that_need_held_out_samples_say_so(fit: Fit, rule: PartRule) -> None:
    with pytest.raises(ConfigurationError, match=r"\(data.client_val_fraction above 0\) for .*Mask"):
        fit(small_module(FedAvg, **sparse(rule)), rounds=1)
