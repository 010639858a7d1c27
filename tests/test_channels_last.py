"""Resident nets get images channels last, folded nets have channels-last weights, and results do not change."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hetfl.layout import Layout
from hetfl.local import LocalTraining, Sequential, Stacked
from hetfl.local.channels_last import ChannelsLast, ChannelsLastLayout, channels_last, without_layout
from hetfl.models import ConvNet
from hetfl.submodel import state_of
from tests.local_cases import Problem, bench_of, results, sgd, tasks_of


class LayoutRecorder(nn.Module):
    """Records the layout of its inputs; ``view`` works only for adjacent dimensions."""

    def __init__(self, *, width: float = 1.0, views: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, int(8 * width), 3), nn.BatchNorm2d(int(8 * width))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(int(8 * width), 10)
        self.views, self.last = views, set[bool]()

    def forward(self, x: Tensor) -> Tensor:
        last = x.stride() == torch.empty(x.shape, memory_format=torch.channels_last).stride()
        self.last.add(last)
        x = self.norm(self.conv(x))
        if last:  # float64 convolutions lose the layout
            x = x.contiguous(memory_format=torch.channels_last)
        x = (x.view(len(x), -1) if self.views else x.flatten(1)).unflatten(1, (-1, 36))
        logits: Tensor = self.head(self.drop(x.mean(dim=2)))
        return logits


def trained(views: bool) -> tuple[Tensor, set[bool]]:
    """Return a delta, and whether the net received channels-last inputs."""
    problem, tasks = (
        Problem(LocalTraining(optimizer=sgd()), partial(LayoutRecorder, views=views)),
        tasks_of([0], levels="a"),
    )
    bench = bench_of(problem)
    ((delta, *_),) = results(Sequential(), bench, tasks)
    return delta, bench.resident(tasks[0]).net.last  # type: ignore[return-value]


@pytest.mark.usefixtures("double_precision")
def test_both_memory_layouts_train_alike() -> None:
    """Dropout's random numbers are also equal, since the trial uses none."""
    expected, last = trained(views=True)
    assert last == {False}
    actual, last = trained(views=False)
    assert last == {True}
    assert expected.abs().max() > 1e-3
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


def test_the_layout_trial_does_not_change_the_net() -> None:
    net, images = LayoutRecorder().train(), torch.rand(4, 1, 8, 8)
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in net.state_dict().items()}
    (inputs,) = ChannelsLast()(net, (images,)) or (None,)
    assert inputs is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.last == set()


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)])
def test_channels_last_keeps_values_and_also_converts_one_channel(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    converted = channels_last(x)
    assert torch.equal(converted, x)
    assert converted.stride() == torch.empty(shape, memory_format=torch.channels_last).stride()


def test_inputs_that_are_not_images_are_not_converted() -> None:
    hook, net = ChannelsLast(), nn.Linear(4, 2)
    assert hook(net, (torch.rand(3, 4),)) is None
    assert hook(net, ()) is None
    assert hook.accepted == {}


class NeedsChannelsFirst(nn.Conv2d):
    """Accepts only channels first, in training or in evaluation, and raises its own error otherwise."""

    def __init__(self, mode: bool) -> None:
        super().__init__(3, 2, 3)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        assert self.training is not self.mode or x.is_contiguous()
        return super().forward(x)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_training_and_evaluation_modes_are_tried_separately(mode: bool, first: bool) -> None:
    net, hook = NeedsChannelsFirst(mode), ChannelsLast()
    net.register_forward_pre_hook(hook)
    for training in (first, not first):
        net.train(training)(torch.rand(2, 3, 8, 8))
    assert hook.accepted == {mode: False, not mode: True}


def test_an_error_of_the_net_is_raised_unchanged() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3))
    net.register_forward_pre_hook(ChannelsLast())
    with pytest.raises(RuntimeError, match="expected input"):
        net(torch.rand(2, 1, 8, 8))


def test_a_copy_without_the_hook_gives_the_same_outputs() -> None:
    net, images = LayoutRecorder().eval(), torch.rand(3, 1, 8, 8)
    expected = net(images)
    net.register_forward_pre_hook(ChannelsLast())
    net(images)
    assert net.last == {False, True}
    copied = without_layout(net)
    assert torch.equal(copied(images), expected)
    assert len(net._forward_pre_hooks) == 1


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=5),
    st.sampled_from([(), (1,), (3,), (2, 3)]),
)
def test_channels_last_layout_equals_numpy_transposition(shapes: list[list[int]], leading: tuple[int, ...]) -> None:
    plain = Layout({str(number): tuple(shape) for number, shape in enumerate(shapes)})
    last = ChannelsLastLayout(plain.shapes)
    given_D = torch.rand(*leading, plain.size)
    parts = [view.numpy() for view in plain.views(given_D).values()]
    moved = [np.moveaxis(part, -3, -1) if len(shape) == 4 else part for part, shape in zip(parts, shapes, strict=True)]
    expected_D = np.concatenate([part.reshape(*leading, math.prod(part.shape[len(leading) :])) for part in moved], -1)
    found_D = last.reordered(given_D, plain)
    assert np.array_equal(found_D, expected_D)
    assert torch.equal(plain.reordered(found_D, last), given_D)
    assert last.reordered(found_D, last) is found_D
    for view, part, shape in zip(last.views(found_D).values(), parts, shapes, strict=True):
        assert np.array_equal(view, part)
        assert torch.equal(last.flat(view, shape), last.flat(torch.from_numpy(part), shape))


@pytest.mark.parametrize("shape", [(3, 1, 4, 5), (3, 2, 1, 1)])
def test_strides_are_contiguous_where_both_layouts_are_equal(shape: tuple[int, ...]) -> None:
    """Kernels are selected by strides, even by strides of dimensions of size one."""
    part = torch.rand(math.prod(shape))
    assert ChannelsLastLayout.shaped(part, shape).stride() == Layout.shaped(part, shape).stride()


@pytest.mark.parametrize("hidden", [(1, 2, 3), (4, 1, 8), (4, 2, 8), (16, 16, 16)])
@pytest.mark.parametrize("clients", [[0], [0, 1, 2]])
@pytest.mark.parametrize("batch_size", [1, 10])
def test_stacked_convolutions_in_float32_equal_sequential_ones(
    hidden: tuple[int, ...], clients: list[int], batch_size: int
) -> None:
    """float32 uses other kernels than float64; some return zero gradients for unexpected weight layouts."""
    net = partial(ConvNet, hidden=hidden, norm="none")
    problem = Problem(LocalTraining(batch_size=batch_size, optimizer=sgd()), net, dtype=torch.float32)
    tasks = tasks_of(clients, levels="a")
    expected = results(Sequential(), bench_of(problem), tasks)
    actual = results(Stacked(), bench_of(problem), tasks)
    layout = Layout.of(state_of(problem.build("a")))
    for (one_D, *_), (other_D, *_) in zip(actual, expected, strict=True):
        assert torch.allclose(one_D, other_D, rtol=0, atol=1e-5)
        moved = {name: float(view.abs().max()) for name, view in layout.views(one_D).items()}
        assert all(most > 1e-6 for name, most in moved.items() if "conv.weight" in name), moved


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "accepted"), [(6, 1, 2, False), (8, 1, 2, True), (6, 3, 2, True), (6, 1, 1, True)]
)
def test_a_net_with_narrow_strided_shortcuts_keeps_its_layout(
    channels: int, kernel: int, stride: int, accepted: bool
) -> None:
    """Their backward pass in channels-last layout crashes on some processors."""
    net = nn.Sequential(nn.Conv2d(channels, 8, kernel, stride), nn.Flatten())
    assert (ChannelsLast()(net, (torch.rand(2, channels, 4, 4),)) is not None) == accepted
