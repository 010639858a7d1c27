"""Split-Mix: a run against NumPy, one base net against FedAvg, ensembles, the choice of base nets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import FedAvg, testing
from hetfl.aggregators import SampleMean
from hetfl.errors import ConfigurationError
from hetfl.fleet import Fixed
from hetfl.methods import SplitMix
from hetfl.models import ConvNet, SplitConvNet
from hetfl.parts import NOBODY, BaseNets
from hetfl.types import Level, Report
from tests.conftest import small_levels, small_module, small_net
from tests.reference.given import made_data
from tests.relative_cases import SIZES, delta, federation
from tests.sparse_cases import CLASSES, FEATURES, Array, Tensors, client_arrays, values_of

Fit = Callable[..., Trainer]
BASES, UNITS = 4, 2


class SplitNet(nn.Module):
    """Base nets of two linear layers each; width 1 is four of them."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.exits = int(BASES * width)
        self.first = nn.Linear(FEATURES, self.exits * UNITS, bias=False)
        self.second = nn.Linear(UNITS, self.exits * CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden_HNC = self.first(inputs.flatten(1)).unflatten(1, (self.exits, -1)).transpose(0, 1)
        weights_HKC = self.second.weight.unflatten(0, (self.exits, -1))
        logits: Tensor = hidden_HNC @ weights_HKC.transpose(1, 2) + self.second.bias.view(self.exits, 1, -1)
        return logits


def base_of(theta: Tensors, base: int) -> Tensors:
    """Return the values of a base net."""
    return {name: np.split(value, BASES)[base] for name, value in theta.items()}


@pytest.mark.usefixtures("double_precision")
def test_a_run_equals_numpy(fit: Fit) -> None:
    rounds = 5
    chosen: list[tuple[int, int, list[int]]] = []

    class Watching(BaseNets):
        def consult(self, round: int, cohort: Any, probe: Any) -> None:
            super().consult(round, cohort, probe)
            for client in cohort:
                count = {"a": 4, "b": 2, "c": 1}[probe.level(client)]
                chosen.append((round, client, self.chosen(count, round, client).tolist()))

    levels, assignment = small_levels(1.0, 0.5, 0.25), Fixed({"a": 1, "b": 1, "c": 2})
    module = federation(SplitMix, net=SplitNet, levels=levels, assignment=assignment, parts=Watching())
    data, present = made_data(SIZES, (6,), 3), values_of(module.net)
    trainer = fit(module, data, rounds=rounds, precision="64-true")
    for round in range(rounds):
        of_round = [(client, bases) for r, client, bases in chosen if r == round]
        assert {base for _, bases in of_round for base in bases} == set(range(BASES))
        new: list[Tensors] = []
        for base in range(BASES):
            old = base_of(present, base)
            trained = [(client, len(client_arrays(data, client)[1])) for client, bases in of_round if base in bases]
            total = sum(size for _, size in trained)
            moves = [(size, delta(old, client_arrays(data, client))) for client, size in trained]
            new.append({name: old[name] + sum(size * move[name] for size, move in moves) / total for name in old})
        present = {name: np.concatenate([each[name] for each in new]) for name in present}
    for name, value in values_of(module.net).items():
        np.testing.assert_allclose(value, present[name], rtol=1e-9, atol=1e-12)
    assert {len(bases) for *_, bases in chosen} == {1, 2, 4}
    assert "val/accuracy_by_level/c" in trainer.callback_metrics


@pytest.mark.usefixtures("double_precision")
def test_one_base_net_is_fedavg_of_that_net(fit: Fit) -> None:
    nets: list[Array] = []
    for kind, net in ((SplitMix, partial(SplitConvNet, hidden=(8, 16), bases=1)), (FedAvg, small_net)):
        module = small_module(kind, net=net, levels=small_levels(1.0), aggregator=SampleMean())
        fit(module, rounds=3, name=kind.__name__, precision="64-true")
        nets.append(np.concatenate([p.detach().numpy().flatten() for p in module.net.parameters()]))
    np.testing.assert_allclose(nets[0], nets[1], rtol=0, atol=1e-10)


def test_an_ensemble_is_the_mean_of_the_logits_of_independent_nets() -> None:
    ensemble, x = SplitConvNet(hidden=(16, 32), bases=4, norm="batch").double().eval(), torch.randn(5, 1, 8, 8).double()
    for p in ensemble.parameters():
        nn.init.normal_(p, std=0.5)
    outputs = ensemble(x)
    for base in range(4):
        net = ConvNet(hidden=(16, 32), width=0.25, norm="batch").double().eval()
        theirs = dict(ensemble.named_parameters())
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(theirs[name].chunk(4)[base])
        assert torch.allclose(outputs[base], net(x))
    module: Any = small_module(SplitMix, net=partial(SplitConvNet, hidden=(16, 32), bases=4, norm="none"))
    half = module.submodel("b")
    assert torch.allclose(module.predict(half, x.float()), (half(x.float())[0] + half(x.float())[1]) / 2)
    whole, heads = module.predict_heads(module.submodel("a"), x.float())
    assert list(heads) == ["head_1", "head_2", "head_3", "head_4"]
    assert torch.allclose(whole, torch.stack(list(heads.values())).mean(0))


def test_sizes_by_hand() -> None:
    testing.check_net(partial(SplitConvNet, bases=4), torch.randn(4, 1, 8, 8), num_outputs=10)
    by_hand = 9 * 8 + 8 + 9 * 8 * 16 + 16 + 9 * 16 * 32 + 32 + 9 * 32 * 64 + 64 + 2 * (8 + 16 + 32 + 64) + 650
    for width, bases in ((1.0, 8), (0.5, 4), (0.125, 1)):
        assert sum(p.numel() for p in SplitConvNet(width=width).parameters()) == bases * by_hand
    documented = [f"{size:,}".replace(",", " ") for size in (by_hand, 8 * by_hand)]
    assert all(size in (SplitConvNet.__doc__ or "") for size in documented)
    assert dict(SplitConvNet(hidden=(3,), bases=4).named_parameters())["blocks.0.conv.weight"].shape == (4, 1, 3, 3)


def ready(**settings: Any) -> BaseNets:
    module: Any = small_module(SplitMix, net=SplitNet, levels=small_levels(1.0, 0.5, 0.25), **settings)
    return module.parts  # type: ignore[no-any-return]


def test_the_first_base_nets_of_cohorts_visit_all_in_turn() -> None:
    rule, seen = ready(), list[int]()
    for round in range(6):
        rule.consult(round, [7, 3], None)  # type: ignore[arg-type]
        seen += [int(rule.chosen(1, round, client)) for client in (7, 3)]
    assert all(sorted(seen[i : i + BASES]) == list(range(BASES)) for i in range(0, 12, BASES))
    assert len({tuple(seen[i : i + BASES]) for i in range(0, 12, BASES)}) > 1
    assert rule.chosen(4, 5, 3).tolist() == [0, 1, 2, 3]


def test_parts_are_blocks_of_base_nets() -> None:
    rule = ready()
    assert rule.part("b", 0, NOBODY)["first.weight"][0] == slice(0, 4)
    for round in range(3):
        bases = rule.chosen(2, round, 5).tolist()
        assert len(set(bases)) == 2
        entry = rule.part("b", round, 5)
        assert entry["first.weight"][0].tolist() == [2 * b + i for b in bases for i in range(2)]  # type: ignore[union-attr]
        assert entry["second.bias"][0].tolist() == [3 * b + i for b in bases for i in range(3)]  # type: ignore[union-attr]
    assert rule.part("a", 0, 5) == rule.levels.indices["a"]


def test_the_loss_is_the_sum_of_the_base_nets_losses() -> None:
    module: Any = small_module(SplitMix, net=SplitNet, levels={"a": Level("a")})
    outputs, targets = torch.randn(3, 7, 5), torch.randint(5, (7,))
    ctx: Any = Report(0, "a", 1, 0.0)
    expected = sum(F.cross_entropy(each, targets) for each in outputs)
    assert torch.allclose(module.loss(outputs, targets, ctx), torch.as_tensor(expected))


def test_what_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"several base nets, such as .*SplitConvNet, .* but got ConvNet"):
        small_module(SplitMix)
    with pytest.raises(ConfigurationError, match=r"width a multiple of 1/8 in \(0, 1\], the bases, but got 0.3"):
        SplitConvNet(width=0.3)
    with pytest.raises(ConfigurationError, match="bases of at least 1 but got 0"):
        SplitConvNet(bases=0)
    with pytest.raises(
        ConfigurationError, match="norm static_batch, batch, none or dual for SplitConvNet, .* got group"
    ):
        SplitConvNet(norm="group")  # type: ignore[arg-type]
