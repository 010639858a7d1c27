"""Levels: nets need only the axes that levels use, and must return logits of one exit or of several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import DepthFL, FedAvg, FederatedModule, HeteroFL, Level
from hetfl.errors import ConfigurationError
from hetfl.levels.level_set import LevelSet
from hetfl.models import ConvNet, MultiExitConvNet, scaled
from tests.conftest import small_data, small_levels, small_module


class Exits(nn.Module):
    """Linear layers, each with a linear exit."""

    def __init__(self, depth: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c = scaled(8, width)
        self.stages = nn.ModuleList(nn.Linear(64 if i == 0 else c, c) for i in range(depth))
        self.heads = nn.ModuleList(nn.Linear(c, 10) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, logits = x.flatten(1), []
        for stage, head in zip(self.stages, self.heads, strict=True):
            x = F.relu(stage(x))
            logits.append(head(x))
        return torch.stack(logits)


def deep(*, depth: int = 3) -> nn.Module:
    return Exits(depth)


def wide(*, width: float = 1.0) -> nn.Module:
    return Exits(width=width)


def rigid() -> nn.Module:
    return Exits()


def test_a_net_needs_an_axis_only_if_levels_use_it() -> None:
    depths, widths = {"a": Level("a"), "b": Level("b", depth=1)}, small_levels(1.0, 0.5)
    level_set = LevelSet(deep, depths, seed=0)  # type: ignore[arg-type]
    assert level_set.sizes == {"a": 64 * 8 + 8 + 2 * 72 + 3 * 90, "b": 520 + 90}
    assert len(LevelSet(wide, widths, seed=0)) == 2
    assert len(LevelSet(rigid, {"a": Level("a")}, seed=0)) == 1  # type: ignore[arg-type]
    cases: list[tuple[str, Callable[..., nn.Module], dict[str, Level]]] = [
        ("depth", wide, depths),
        ("depth", rigid, depths),
        ("width", deep, widths),
        ("width", rigid, widths),
        ("width", deep, {"a": Level("a"), "b": Level("b", 0.5, 1)}),
    ]
    for axis, net, levels in cases:
        with pytest.raises(ConfigurationError, match=f"takes '{axis}', which levels of different {axis} need"):
            LevelSet(net, levels, seed=0)


def test_a_depth_that_the_net_does_not_have_is_refused_and_the_level_is_named() -> None:
    net = partial(MultiExitConvNet, hidden=(8, 8))
    with pytest.raises(ConfigurationError, match=r"^Expected depth in 1..2, .* but got 3 \(level b\)$"):
        LevelSet(net, {"a": Level("a"), "b": Level("b", depth=3)}, seed=0)
    with pytest.raises(ConfigurationError, match=r"level b to be in the global model but got 'stages.1"):
        LevelSet(net, {"a": Level("a", depth=1), "b": Level("b", depth=2)}, seed=0)


class Shaped(Exits):
    """Returns the result of a function of the logits."""

    def __init__(self, change: Callable[[Tensor], object], depth: int = 3, exits: int | None = None) -> None:
        super().__init__(depth)
        self.change, self.exits = change, exits

    def forward(self, x: Tensor) -> Tensor:
        return self.change(super().forward(x))  # type: ignore[return-value]


def test_only_outputs_with_the_declared_exits_are_accepted() -> None:
    inputs = torch.rand(4, 1, 8, 8)

    def inspect(change: Callable[[Tensor], object], exits: int | None = None) -> dict[str, tuple[float, float]]:
        return LevelSet(partial(Shaped, change, exits=exits), {"a": Level("a")}, seed=0).inspect(inputs, (4, 10))

    stages, heads = 2 * (64 * 8 + 8 * 8 + 8 * 8), 2 * 3 * 8 * 10
    assert inspect(lambda logits: logits, 3)["a"] == (stages + heads, 3 * (stages + heads) - 2 * 64 * 8)
    assert inspect(lambda logits: logits[0])["a"][0] == stages + heads
    inspect(lambda logits: logits[:1], 1)
    with pytest.raises(
        ConfigurationError, match=r"\(3, 4, 10\) from Shaped \(a net of 3 exits declares them: exits = 3\)$"
    ):
        inspect(lambda logits: logits)
    changes: list[tuple[Callable[[Tensor], object], str]] = [
        (lambda logits: logits.transpose(0, 1), r"\(4, 3, 10\)"),
        (lambda logits: logits[..., :9], r"\(3, 4, 9\)"),
        (lambda logits: logits[0, :3], r"\(3, 10\)"),
        (lambda logits: logits[0, 0], r"\(10,\)"),
        (lambda logits: logits.unsqueeze(0), r"\(1, 3, 4, 10\)"),
        (list, "list"),
    ]
    for change, got in changes:
        expected = rf"outputs of shape \(4, 10\) from the net at level a but got {got} from Shaped$"
        with pytest.raises(ConfigurationError, match=expected):
            inspect(change)


@pytest.mark.parametrize(
    ("method", "net", "levels", "message"),
    [
        (
            FedAvg,
            MultiExitConvNet,
            None,
            r"one exit for FedAvg but got 2 exits from MultiExitConvNet: .* hetfl.DepthFL$",
        ),
        (HeteroFL, MultiExitConvNet, small_levels(1.0, 0.5), r"for HeteroFL but got .* hetfl.DepthFL$"),
        (DepthFL, ConvNet, {"a": Level("a")}, r"predict outputs of shape \(4, 10\) but got \(10,\): .* exits"),
    ],
)
def test_a_net_whose_exits_the_method_cannot_use_is_refused_before_the_first_round(
    fit: Callable[..., Trainer],
    method: type[FederatedModule],
    net: type[nn.Module],
    levels: dict[str, Level] | None,
    message: str,
) -> None:
    module = small_module(method, net=partial(net, hidden=(8, 8)), levels=levels)
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for run in (lambda: fit(module, rounds=1), lambda: plain.validate(module, datamodule=small_data(), verbose=False)):
        with pytest.raises(ConfigurationError, match=message) as error:
            run()
        assert "\n" not in str(error.value)


def test_a_multi_exit_net_with_one_level_trains_with_depthfl(fit: Callable[..., Trainer]) -> None:
    net = partial(MultiExitConvNet, hidden=(8, 8))
    trainer = fit(small_module(DepthFL, net=net, levels={"a": Level("a")}, distillation=False), rounds=1)
    assert trainer.global_step == 1
