"""Stacked training of several clients: the nets that can be batched, and how each kind is batched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import DepthFL, FederatedModule, HeteroFL
from hetfl.errors import ConfigurationError
from hetfl.local import LocalTraining, Stacked
from hetfl.local.jobs import train
from hetfl.local.stacked.folding import FoldedNet
from hetfl.local.stacked.rewriting import rewrite
from hetfl.models import ConvNet, MultiExitConvNet, MultiExitResNet, PreActResNet, Scaler
from hetfl.models.layers import Norm
from hetfl.models.static_batch_norm import StaticBatchNorm2d
from hetfl.parts import RandomChannels
from hetfl.types import ClientContext, Level
from tests.conftest import small_levels, small_net
from tests.local_cases import Problem, bench_of, compare, results, sgd, tasks_of

pytestmark = pytest.mark.usefixtures("double_precision")

LEVELS = small_levels(1.0, 0.5)


class MethodProblem(Problem):
    """A problem with the loss of a method, label masks included."""

    def __init__(self, method: type[FederatedModule], local: LocalTraining, net: Callable[..., nn.Module], **rest: Any):
        super().__init__(local, net, **rest)
        self.method = method(net=net, levels=dict(self.levels))

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return self.method.loss(outputs, targets, ctx)


@pytest.mark.parametrize("norm", ["static_batch", "group", "none"])
def test_heterofls_masked_loss_and_scaler_train_alike_stacked(norm: Norm) -> None:
    """With 3 and 5 samples most of the 10 classes are absent."""
    net = partial(ConvNet, hidden=(8, 16), norm=norm)
    problem = MethodProblem(HeteroFL, LocalTraining(batch_size=4, optimizer=sgd()), net, levels=LEVELS)
    stacks = compare(problem, tasks_of([0, 1, 2, 3]), (5, 3, 21, 5))
    assert all(isinstance(stack.net, FoldedNet) and stack.joint for stack in stacks.values())


MULTI_EXIT = [
    partial(MultiExitConvNet, hidden=(4, 8, 8)),
    partial(MultiExitResNet, in_channels=1, num_classes=10, hidden=(4, 8, 8), norm="static_batch"),
]
DEPTHS = {"a": Level("a", 1.0, 3), "b": Level("b", 0.5, 2), "c": Level("c", 1.0, 1)}


@pytest.mark.parametrize("net", MULTI_EXIT, ids=["MultiExitConvNet", "MultiExitResNet"])
def test_self_distillation_of_several_exits_trains_alike_stacked(net: Callable[..., nn.Module]) -> None:
    """Nets with depthwise convolutions, gates and upsampling."""
    problem = MethodProblem(DepthFL, LocalTraining(batch_size=8, optimizer=sgd()), net, levels=DEPTHS)
    stacks = compare(problem, tasks_of([0, 1], levels="abc"), (17, 20))
    assert all(isinstance(stack.net, FoldedNet) and stack.joint for stack in stacks.values())


def test_a_residual_net_trains_alike_stacked() -> None:
    net = partial(PreActResNet, in_channels=1, hidden=(4, 4, 8, 8))
    local = LocalTraining(optimizer=sgd(), gradient_clip=0.1)  # four stages leave a pixel: norms are steep
    stacks = compare(Problem(local, net), tasks_of([0, 1, 2], lr=0.02), (20, 17, 20))
    assert all(isinstance(stack.net, FoldedNet) for stack in stacks.values())


def test_rewritten_nets_compute_the_same_in_fewer_passes() -> None:
    """The Scaler is folded into batch norm's epsilon, which is large here, and ReLU is moved behind the pool."""
    net = ConvNet(hidden=(8, 16), width=0.5).train()
    for layer in net.modules():
        if isinstance(layer, StaticBatchNorm2d):
            layer.eps = 0.1
    images = torch.randn(5, 1, 8, 8)
    changed = copy.deepcopy(net)
    rewrite(changed)
    assert not [layer for layer in changed.modules() if isinstance(layer, Scaler)]
    assert [type(layer) for layer in changed.blocks[0].children()][-2:] == [nn.MaxPool2d, nn.ReLU]
    for one in (net, changed):
        one(images).square().sum().backward()
    assert torch.allclose(changed(images), net(images), rtol=1e-12)
    for (name, parameter), (other, rewritten) in zip(net.named_parameters(), changed.named_parameters(), strict=True):
        assert name == other
        assert torch.allclose(rewritten.grad, parameter.grad, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


class Reordered(nn.Sequential):
    """Runs its layers in another order."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in reversed(self):
            x = layer(x)
        return x


def test_layers_called_in_another_order_are_not_rewritten() -> None:
    net = Reordered(Scaler(0.5), StaticBatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)).train()
    images = torch.randn(5, 3, 8, 8)
    expected = net(images)
    rewrite(net)
    assert torch.equal(net(images), expected)


def test_nets_of_a_single_channel_train_alike_stacked() -> None:
    compare(Problem(LocalTraining(optimizer=sgd()), partial(ConvNet, hidden=(2, 4))), tasks_of([0, 1, 2]))


def test_a_single_filter_of_a_single_client_trains_alike_stacked() -> None:
    net = partial(ConvNet, hidden=(4, 1, 8))
    compare(Problem(LocalTraining(optimizer=sgd()), net, levels={"a": Level("a")}), tasks_of([2], "a"))


class Branched(nn.Module):
    """Branches concatenated along the channels, and a layer norm; neither can be folded."""

    def __init__(self, *, width: float = 1.0, fold: bool = False) -> None:
        super().__init__()
        channels = int(8 * width)
        self.left, self.right = nn.Conv2d(1, channels, 3), nn.Conv2d(1, channels, 3)
        self.scaler, self.norm = Scaler(width), nn.Identity() if fold else nn.LayerNorm([6, 6])
        self.register_buffer("shift", torch.full((1,), 0.3))
        self.head, self.unused = nn.Linear(2 * channels, 10), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(torch.cat([self.left(x), self.right(x)], dim=1)) + self.shift
        logits: Tensor = self.head(F.relu(self.scaler(out)).mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("fold", [False, True])
def test_other_nets_are_stacked_with_torch_func(fold: bool) -> None:
    """With ``fold`` every layer can be folded, but not the operation that the net does between them."""
    problem = Problem(LocalTraining(epochs=2, optimizer=sgd(), gradient_clip=0.4), partial(Branched, fold=fold))
    problem.net.shift.fill_(0.7)  # type: ignore[operator]
    stacks = compare(problem, tasks_of([0, 1, 2, 3]))
    assert not any(isinstance(stack.net, FoldedNet) for stack in stacks.values())


@pytest.mark.parametrize("net", [Branched, small_net])
def test_clients_with_different_parts_start_from_their_part(net: Callable[..., nn.Module]) -> None:
    """Each client starts from the values of its part, with every kind of batching."""
    problem, rule = Problem(LocalTraining(optimizer=sgd()), net), RandomChannels()
    rule.meet(problem.levels, seed=3)
    compare(problem, [replace(task, part=rule.part(task.level, 3, task.client)) for task in tasks_of([0, 1, 2])])


def test_frozen_parameters_do_not_change() -> None:
    def net(*, width: float = 1.0) -> nn.Module:
        made = small_net(width=width)
        made.get_parameter("blocks.0.conv.weight").requires_grad_(False)
        return made

    problem = Problem(LocalTraining(optimizer=sgd()), net)
    stacks = compare(problem, tasks_of([0, 1, 2]))
    assert isinstance(stacks["a"].net, FoldedNet)
    before, bench = problem.net.get_parameter("blocks.0.conv.weight").clone(), bench_of(problem)
    for vector, *_ in results(Stacked(), bench, tasks_of([1], "a")):
        assert len(vector) == problem.levels.sizes["a"] - before.numel()
    assert torch.equal(bench.models[0]["blocks.0.conv.weight"], before)


class WrongGradients(nn.Module):
    """A net with right outputs and wrong gradients for several clients at once."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small_net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits if logits.shape[-1] == 10 else logits.detach() + 0.5 * (logits - logits.detach())


def test_wrong_batched_gradients_are_refused() -> None:
    problem = Problem(LocalTraining(optimizer=sgd()), lambda *, width=1.0: WrongGradients(), levels={"a": Level("a")})
    stacks = compare(problem, tasks_of([0, 1, 2], "a"))
    assert not isinstance(stacks["a"].net, FoldedNet)


class Drawing(nn.Module):
    """Draws random numbers outside of layers, counts calls, or reads its values."""

    seen: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, small_net()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "draws":
            x = F.dropout(x, 0.5, self.training)
        if self.kind == "counts":
            self.seen += 1
        logits: Tensor = self.inner(x)
        return logits if self.kind != "looks" or bool(logits.sum() > 0) else -logits


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Sequential(nn.Dropout(0.5), small_net()), r"without dropout .*'0', a Dropout, in the net at level a"),
    (lambda: small_net(norm="batch"), r"without running statistics .*'blocks.0.norm', a BatchNorm2d"),
    (lambda: Drawing("draws"), "draws no random numbers"),
    (lambda: Drawing("counts"), "changes no buffer .*'seen'"),
    (lambda: Drawing("looks"), "torch.func.vmap can batch"),
]


@pytest.mark.parametrize(("net", "message"), REFUSED)
def test_nets_that_cannot_run_several_clients_in_one_call_are_refused(
    net: Callable[[], nn.Module], message: str
) -> None:
    executor = Stacked()
    executor.open(bench_of(Problem(LocalTraining(), lambda *, width=1.0: net(), levels={"a": Level("a")})))
    with pytest.raises(ConfigurationError, match=message) as caught:
        next(executor.run(train, tasks_of([0], "a")))
    assert "\n" not in str(caught.value)
