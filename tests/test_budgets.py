"""Levels by cost against brute force over all sizes, nets cut to a budget, and refused budgets."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from torch import Tensor, nn

from hetfl import ConfigurationError, DepthFL, HeteroFL, Level
from hetfl.levels.budgets import Budgets
from hetfl.levels.level_set import LevelSet
from hetfl.levels.sizes import Size, largest_within, widths_of, without_values
from hetfl.models import ConvNet, MultiExitConvNet, PreActResNet, Scaler
from hetfl.wire import dense_size
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
HALVES = [1.0, 0.5, 0.25, 0.125]


def conv_parameters(hidden: list[int]) -> int:
    """Return the number of a ConvNet's parameters: 3x3 weights, bias, and two of the norm; then the classifier's."""
    blocks = sum(9 * before * after + 3 * after for before, after in pairwise([1, *hidden]))
    return blocks + 10 * hidden[-1] + 10


def prefix(hidden: list[int], width: Fraction) -> list[int]:
    return [math.ceil(width * channels) for channels in hidden]


@settings(max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    budgets=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=4, unique=True),
    by=st.sampled_from(["params", "upload_bytes"]),
)
def test_widths_equal_the_best_of_all_channel_counts(hidden: list[int], budgets: list[float], by: Any) -> None:
    def cost(width: Fraction) -> int:
        parameters = conv_parameters(prefix(hidden, width))
        return parameters if by == "params" else dense_size(parameters)

    budgets = sorted(budgets, reverse=True)
    net, fine = partial(ConvNet, hidden=hidden), math.lcm(*hidden)
    every = [Fraction(k, fine) for k in range(1, fine + 1)]
    if cost(every[0]) > budgets[-1] * cost(every[-1]):
        with pytest.raises(ConfigurationError, match="budget of at least"):
            LevelSet(net, Budgets(by, budgets), seed=0)
        return
    levels = LevelSet(net, Budgets(by, budgets), seed=0)
    assert list(levels) == list("abcd")[: len(budgets)]
    for (name, allowed), budget in zip(levels.allowances.items(), budgets, strict=True):
        limit = budget * cost(every[-1])
        best = max((width for width in every if cost(width) <= limit), key=cost)
        assert allowed.cost == cost(best) <= allowed.limit == limit
        shapes = [p.shape[0] for n, p in levels.build(name).named_parameters() if n.endswith("conv.weight")]
        assert shapes == prefix(hidden, allowed.size.width) == prefix(hidden, best)


@settings(max_examples=200)
@given(costs=st.lists(st.integers(0, 9).map(float) | st.none(), max_size=12), limit=st.floats(0, 10))
def test_bisection_skips_sizes_that_the_net_does_not_have(costs: list[float | None], limit: float) -> None:
    rising = iter(sorted(cost for cost in costs if cost is not None))
    table = {Size(depth=i): None if cost is None else next(rising) for i, cost in enumerate(costs)}
    fitting = [size for size, cost in table.items() if cost is not None and cost <= limit]
    assert largest_within(list(table), limit, table.__getitem__) == (fitting[-1] if fitting else None)


def test_group_norm_allows_multiples_of_its_groups_only() -> None:
    net = partial(ConvNet, hidden=(24, 48), norm="group")
    levels = LevelSet(net, Budgets("params", [1.0, 0.4, 0.2]), seed=0)
    sizes = [(12 * k, 24 * k) for k in (1, 2)] + [(4 * k, 8 * k) for k in (1, 2, 4, 5)]
    for allowed in levels.allowances.values():
        best = max(c for c in (conv_parameters(list(size)) for size in sizes) if c <= allowed.limit)
        assert allowed.cost == best


def test_depths_are_the_deepest_within_budget_and_may_be_equal() -> None:
    counts = (3930, 14564, 43502, 118904)
    net = partial(MultiExitConvNet, hidden=(16, 32, 64, 128))
    levels = LevelSet(net, Budgets("params", HALVES), seed=0, own_axis="depth")
    assert {name: level.depth for name, level in levels.items()} == {"a": 4, "b": 3, "c": 2, "d": 2}
    assert [allowed.cost for allowed in levels.allowances.values()] == [counts[i] for i in (3, 2, 1, 1)]
    assert levels.affords("d", "c")
    cut = LevelSet(net, Budgets("params", [1.0, 0.5], "depth", 50_000), seed=0)
    assert {name: level.depth for name, level in cut.items()} == {"a": 3, "b": 2}
    assert sum(p.numel() for p in cut.net.parameters()) == counts[2]
    roomy = LevelSet(net, Budgets("params", [2.0, 1.0], "depth", 100_000), seed=0)
    assert {name: level.depth for name, level in roomy.items()} == {"a": 4, "b": 3}


def test_flops_budgets_use_the_counted_flops() -> None:
    inputs = torch.rand(4, 1, 8, 8)
    levels = LevelSet(partial(ConvNet, hidden=(8, 12)), Budgets("flops", [1.0, 0.3], sample_shape=[1, 8, 8]), seed=0)
    flops = levels.inspect(inputs, (4, 10), lambda level, _: levels.indices[level])
    assert {name: allowed.cost for name, allowed in levels.allowances.items()} == {n: f[1] for n, f in flops.items()}
    one_more = levels.allowances["b"].size.width + Fraction(1, 12)
    wider = LevelSet(partial(ConvNet, hidden=prefix([8, 12], one_more)), {"a": Level("a")}, seed=0)
    assert wider.inspect(inputs, (4, 10))["a"][1] > levels.allowances["b"].limit
    with pytest.raises(ConfigurationError, match=r"sample_shape \[1, 9, 9\], the data's"):
        levels.inspect(torch.rand(4, 1, 9, 9), (4, 10))


def test_methods_with_the_same_reference_have_the_same_budgets() -> None:
    reference = partial(MultiExitConvNet, hidden=(16, 32, 64, 128))
    wide = LevelSet(partial(ConvNet, hidden=(64, 96, 128)), Budgets("params", HALVES, "width", reference), seed=0)
    deep = LevelSet(reference, Budgets("params", HALVES, "depth", reference), seed=0)
    for one, other in zip(wide.allowances.values(), deep.allowances.values(), strict=True):
        assert one.limit == other.limit
        assert 0.93 * one.limit < one.cost <= one.limit
        assert other.cost <= other.limit


def test_widths_are_found_with_the_first_width_that_a_net_accepts() -> None:
    def picky(*, width: float = 1.0) -> nn.Module:
        if width not in (1.0, 0.75):
            raise ValueError(f"no net of width {width}")
        return nn.Linear(3, int(4 * width))

    assert [size.width for size in widths_of(picky)] == [Fraction(k, 4) for k in range(1, 5)]


def test_a_net_cut_to_its_first_budget_equals_the_smaller_net() -> None:
    """The paper's b1-e1: every size is relative to the global model, also the Scaler's ratio."""
    budgets = Budgets("params", [1.0, 0.3], reference=conv_parameters([8, 16]))
    cut = LevelSet(partial(ConvNet, hidden=(16, 32), norm="none"), budgets, seed=0)
    plain = partial(ConvNet, hidden=(8, 16), norm="none")
    assert cut.allowances["a"].size.width == Fraction(1, 2)
    assert cut["a"].width == 1.0
    small = LevelSet(plain, {"a": Level("a"), "b": Level("b", cut["b"].width)}, seed=0)
    assert cut.indices == small.indices
    inputs = torch.rand(3, 1, 8, 8)
    for name in "ab":
        one, other = cut.build(name).train(), small.build(name).train()
        other.load_state_dict(one.state_dict())
        assert torch.allclose(one(inputs), other(inputs), rtol=1e-6)
        ratios = {module.width for module in one.modules() if isinstance(module, Scaler)}
        assert ratios == {cut[name].width}


class Rounds(nn.Module):
    """Rounds its channels and reads its own values."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        channels = max(1, round(20 * width))
        self.first, self.second = nn.Linear(64, channels), nn.Linear(channels, 10)
        self.scale = float(self.first.weight.abs().max())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x.flatten(1)) / self.scale))  # type: ignore[no-any-return]


def test_users_nets_may_round_and_read_their_values_and_random_state_is_kept() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    chosen, allowed = Budgets("flops", [0.8, 0.33], sample_shape=[1, 8, 8]).choose(Rounds, "width")
    assert torch.equal(torch.rand(1), expected)
    assert [a.size.width for a in allowed.values()] == [Fraction(16, 20), Fraction(6, 20)]
    assert chosen["b"].width == 6 / 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "time"}, r"by in \('params', 'flops', 'upload_bytes'\) for levels but got 'time'"),
        ({"axis": "length"}, "axis width, depth or null .* but got 'length'"),
        ({"budgets": []}, "1 to 26 budgets, one per level, but got 0"),
        ({"budgets": [1.0] * 27}, "but got 27"),
        ({"budgets": [0.5, 1.0]}, r"falling budgets, .* but got \[0.5, 1.0\]"),
        ({"budgets": [1.0, 1.0]}, "falling budgets"),
        ({"budgets": [1.0, 0.0]}, r"positive budgets but got \[1.0, 0.0\]"),
        ({"budgets": [float("nan")]}, "positive budgets"),
        ({"budgets": [2.0, 1.0]}, "budgets in .0, 1., fractions of the net, but got 2.0"),
        ({"reference": -1.0}, "positive reference for budgets but got -1.0"),
        ({"by": "flops"}, "sample_shape, the shape of an input .* but got None by flops"),
        ({"sample_shape": [1, 8, 8]}, r"but got \[1, 8, 8\] by params"),
        ({"by": "flops", "sample_shape": [1, 0, 8]}, "positive sizes in sample_shape"),
        ({"by": "flops", "sample_shape": [3, 8, 8]}, r"take inputs of sample_shape \[3, 8, 8\] but got"),
        ({"budgets": [1.0, 0.001]}, r"at least 44 parameters, .*\(width 1/16\), for level b but got 1, which is 0.001"),
        ({"axis": "depth"}, "takes 'depth', which levels of different depth need"),
        ({"reference": partial(nn.Linear, 3)}, "a net or a number as reference but got: .*out_features"),
        ({"reference": nn.Flatten}, "more than 0 parameters as reference but got one of none"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    given = {"by": "params", "budgets": [1.0, 0.5], **arguments}
    with pytest.raises(ConfigurationError, match=message) as error:
        LevelSet(partial(ConvNet, hidden=(8, 16)), Budgets(**given), seed=0)
    assert "\n" not in str(error.value)


def test_a_resnet_is_searched_without_allocating_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[torch.device] = []
    original = PreActResNet.__init__

    def spy(self: nn.Module, **arguments: Any) -> None:
        original(self, **arguments)  # type: ignore[arg-type]
        built.append(next(self.parameters()).device)

    monkeypatch.setattr(PreActResNet, "__init__", spy)
    _, allowed = Budgets("params", HALVES).choose(PreActResNet, "width")
    assert {device.type for device in built[2:]} <= {"meta"}
    assert [a.cost for a in allowed.values()] == [11_172_170, 5_573_343, 2_781_619, 1_385_250]


@pytest.mark.parametrize(("method", "net"), [(HeteroFL, ConvNet), (DepthFL, MultiExitConvNet)])
def test_a_run_with_budgets_uses_the_axis_of_its_method(fit: Fit, method: Any, net: Any) -> None:
    budgets = Budgets("params", [1.0, 0.4], reference=2000)
    module = small_module(method, net=partial(net, hidden=(8, 16)), levels=budgets)
    fit(module, small_data(), rounds=1)
    assert (module.levels["a"].depth is None) == (method is HeteroFL)
    assert "levels" in module.run_state.fingerprint(module.data, module.pieces)


class Rounded(nn.Module):
    """A net of two layers with a custom rounding of channels."""

    def __init__(self, rounding: Callable[[float], float], width: float = 1.0) -> None:
        super().__init__()
        sizes = [5, *(max(1, int(rounding(width * c))) for c in (10, 29, 100)), 3]
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


@pytest.mark.parametrize("rounding", [math.ceil, math.floor, round], ids=["up", "down", "nearest"])
def test_all_sizes_of_nets_with_other_roundings_are_found(
    rounding: Callable[[float], float],
) -> None:
    def net(*, width: float = 1.0) -> nn.Module:
        return Rounded(rounding, width)

    def size(width: float) -> int:
        return sum(p.numel() for p in without_values(lambda: net(width=width)).parameters())

    thresholds = sorted({(k + shift) / c for c in (10, 29, 100) for k in range(c + 1) for shift in (0.0, 0.5)})
    near = {
        step + shift for step in thresholds for shift in (-1e-5, 1e-5)
    }  # exactly at a step, binary fractions decide
    costs = sorted({size(width) for width in near if 0.1 <= width <= 1})
    for limit in sorted({cost + step for cost in costs[1:-1:9] for step in (-1, 0, 1)}):
        levels, allowances = Budgets(by="params", budgets=[1.0], reference=float(limit)).choose(net, "width")
        assert allowances["a"].cost == max(cost for cost in costs if cost <= limit)
        assert size(float(allowances["a"].size.width)) == allowances["a"].cost
        assert levels["a"].width == 1.0
