"""Multi-exit nets: shallow nets are prefixes, layers equal slow references, and a run trains them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torchvision
from lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from hetfl import FederatedModule, Level
from hetfl.errors import ConfigurationError
from hetfl.fleet import Fixed
from hetfl.models import ConvNet, MultiExitConvNet, MultiExitResNet, Scaler
from hetfl.models.exits import AttentionGate
from hetfl.models.static_batch_norm import gathering, static_layers
from hetfl.submodel import buffers_of, prefix_index, state_of
from hetfl.types import ClientContext
from tests.conftest import small_module

HIDDEN = (8, 8, 16, 16)
NETS: dict[str, Callable[..., nn.Module]] = {
    "convnet": partial(MultiExitConvNet, in_channels=3, num_classes=7, hidden=HIDDEN),
    "resnet": partial(MultiExitResNet, num_classes=7, hidden=HIDDEN),
}
both_nets = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


@both_nets
@pytest.mark.parametrize("depth", [0, -1, 5])
def test_a_depth_out_of_range_is_refused(make: Callable[..., nn.Module], depth: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"^Expected depth in 1..4, .*stages, but got {depth}$"):
        make(depth=depth)
    with pytest.raises(ConfigurationError, match="hidden"):
        make(hidden=())


@both_nets
@pytest.mark.parametrize("width", [1.0, 0.5, 0.3])
def test_parameters_of_a_shallow_net_are_the_first_of_a_deep_net(make: Callable[..., nn.Module], width: float) -> None:
    states = [make(width=width, depth=depth).state_dict() for depth in (1, 2, 3, 4)]
    assert list(make(width=width).state_dict()) == list(states[-1])
    for shallow, deep in itertools.pairwise(states):
        assert len(shallow) < len(deep)
        assert list(shallow) == list(deep)[: len(shallow)]
        assert all(shallow[name].shape == deep[name].shape for name in shallow)


@both_nets
@pytest.mark.parametrize("norm", ["static_batch", "batch"])
def test_every_width_and_depth_is_a_leading_block_of_the_full_net(make: Callable[..., nn.Module], norm: str) -> None:
    whole = state_of(make(norm=norm))
    for width, depth in itertools.product((1.0, 0.5, 0.3, 0.01), (1, 2, 3, 4)):
        part = state_of(make(norm=norm, width=width, depth=depth))
        index = prefix_index(whole, part, "x")
        assert index == {name: tuple(slice(0, size) for size in tensor.shape) for name, tensor in part.items()}
        # Image channels and classes are never cut.
        assert next(iter(part.values())).shape[1] == 3
        assert [len(tensor) for name, tensor in part.items() if name.endswith("classifier.weight")] == [7] * depth


def moved(net: nn.Module) -> nn.Module:
    """Change weights and running statistics from their initial values."""
    random = torch.Generator().manual_seed(1)
    for tensor in state_of(net).values():
        tensor.data += 0.2 * (torch.rand(tensor.shape, generator=random, dtype=tensor.dtype) - 0.5)
    return net


def with_statistics(net: nn.Module, *batches: Tensor) -> nn.Module:
    """Gather static batch norm's statistics, as clients do, and load them."""
    with torch.no_grad(), gathering(net) as layers:
        for batch in batches:
            net(batch)
        sums = {name: layer.sums for name, layer in layers.items()}
    for name, layer in layers.items():
        gathered = sums[name]
        assert gathered is not None
        assert gathered.batches == len(batches)
        layer.load(gathered)
    return net.eval()


@both_nets
@pytest.mark.parametrize("norm", ["static_batch", "batch"])
def test_exits_of_a_shallow_net_equal_the_first_exits_of_a_deep_net(make: Callable[..., nn.Module], norm: str) -> None:
    inputs = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = with_statistics(moved(make(norm=norm)), inputs)
    expected = whole(inputs)
    assert expected.shape == (4, 4, 7)
    for depth in (1, 2, 3):
        part = make(norm=norm, depth=depth)
        part.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in part.state_dict()})
        assert torch.equal(with_statistics(part, inputs)(inputs), expected[:depth])


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def separable_conv(x: Tensor, layer: nn.Module, stride: int) -> Tensor:
    filters, weight = (layer.get_parameter(name) for name in ("depthwise.weight", "pointwise.conv.weight"))
    channels = [F.conv2d(x[:, [c]], filters[[c]], stride=stride, padding=1) for c in range(x.shape[1])]
    x = torch.einsum("nchw,oc->nohw", torch.cat(channels, dim=1), weight[:, :, 0, 0])
    return batch_norm(x, layer.get_submodule("pointwise.norm")).clamp(min=0)


def upsampled(x: Tensor, height: int, width: int) -> Tensor:
    """Return the bilinear interpolation pixel by pixel; values are those of the pixels' centres."""

    def mixture(large: int, small: int) -> Tensor:
        weights = torch.zeros(large, small, dtype=x.dtype)
        for i in range(large):
            centre = max((i + 0.5) * small / large - 0.5, 0.0)
            low = min(math.floor(centre), small - 1)
            weights[i, low] += 1 - (centre - low)
            weights[i, min(low + 1, small - 1)] += centre - low
        return weights

    return torch.einsum("ih,nchw,jw->ncij", mixture(height, x.shape[2]), x, mixture(width, x.shape[3]))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (2, 2), (1, 3)])
def test_the_gate_equals_a_slow_reference(height: int, width: int) -> None:
    torch.manual_seed(0)
    gate = moved(AttentionGate(6, "batch", width=1.0)).double().train()
    x = torch.randn(3, 6, height, width, dtype=torch.float64)
    assert isinstance(gate, AttentionGate)
    reduce, expand = gate.bottleneck
    slow = separable_conv(separable_conv(x, reduce, stride=2), expand, stride=1)
    slow = batch_norm(slow, gate.norm).clamp(min=0)
    slow = x / (1 + (-upsampled(slow, height, width)).exp())
    assert torch.allclose(gate(x), slow, rtol=0, atol=1e-12)
    assert torch.allclose(gate.float()(x.float()), slow.float(), rtol=0, atol=1e-6)


def test_the_resnets_trunk_and_last_exit_equal_torchvisions_with_a_small_stem() -> None:
    net = moved(MultiExitResNet(num_classes=7)).eval()
    reference = torchvision.models.resnet18(num_classes=7)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    heads = tuple(f"stages.{i}.classifier" for i in range(3))
    ours = [t for name, t in net.state_dict().items() if ".exit." not in name and not name.startswith(heads)]
    reference.load_state_dict(dict(zip(reference.state_dict(), ours, strict=True)))
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(net(x)[-1], reference.eval()(x), rtol=1e-4)


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_convnets_trunk_and_last_exit_equal_the_single_exit_net(width: float) -> None:
    net, single = MultiExitConvNet(hidden=HIDDEN, width=width), ConvNet(hidden=HIDDEN, width=width)
    ours = net.state_dict()
    names = {
        name: name.replace("blocks.", "stages.").replace(".conv", ".trunk.conv").replace(".norm", ".trunk.norm")
        for name in single.state_dict()
        if name.startswith("blocks")
    } | {f"classifier.{leaf}": f"stages.3.classifier.{leaf}" for leaf in ("weight", "bias")}
    single.load_state_dict({name: ours[our_name] for name, our_name in names.items()})
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.train()(x)[-1], single.train()(x))


@both_nets
@pytest.mark.parametrize("size", [8, 28, 32])
def test_every_depth_accepts_every_image_size(make: Callable[..., nn.Module], size: int) -> None:
    x = torch.rand(3, 3, size, size)
    for depth, norm in itertools.product((1, 2, 3, 4), ("static_batch", "batch", "group", "none")):
        net = make(norm=norm, depth=depth, width=0.5)
        assert net.train()(x).shape == (depth, 3, 7)
        assert with_statistics(net, x)(x).shape == (depth, 3, 7)


@both_nets
@pytest.mark.parametrize("norm", ["static_batch", "batch", "group", "none"])
def test_gradients_reach_every_parameter(make: Callable[..., nn.Module], norm: str) -> None:
    torch.manual_seed(0)
    for depth in (1, 2, 3, 4):
        net = make(norm=norm, depth=depth).train()
        targets = torch.arange(8) % 7
        torch.stack([F.cross_entropy(logits, targets) for logits in net(torch.rand(8, 3, 16, 16))]).sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            # Batch norm removes a bias before it: the bias's gradient is 0 up to rounding.
            if not (name.endswith("conv.bias") and "batch" in norm):
                assert parameter.grad.abs().max() > 1e-7, name


@both_nets
def test_with_gathered_static_statistics_samples_are_independent(make: Callable[..., nn.Module]) -> None:
    batches = torch.rand(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = with_statistics(moved(make(norm="static_batch", width=0.5, depth=3)), *batches)
    # One behind every Scaler, and one more in a gate.
    assert len(static_layers(net)) == sum(isinstance(module, Scaler | AttentionGate) for module in net.modules())
    logits = net(batches[0])
    alone = torch.cat([net(sample.unsqueeze(0)) for sample in batches[0]], dim=1)
    assert torch.allclose(logits, alone, atol=1e-5)


@both_nets
def test_running_averages_travel_as_buffers_and_static_statistics_do_not(make: Callable[..., nn.Module]) -> None:
    running, static = make(norm="batch", depth=2), make(norm="static_batch", depth=2)
    norms = {name for name, module in running.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert buffers_of(running).keys() == {
        f"{name}.{leaf}" for name in norms for leaf in ("running_mean", "running_var")
    }
    assert norms
    assert not buffers_of(static)


@both_nets
def test_a_scaler_follows_every_normalised_convolution(make: Callable[..., nn.Module]) -> None:
    net = make(norm="none", width=0.5).train()
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scalers = [module for module in net.modules() if isinstance(module, Scaler)]
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    assert len(scalers) == len(convolutions)
    assert {scaler.width for scaler in scalers} == {0.5}
    seen: list[tuple[Tensor, Tensor]] = []
    for scaler in scalers:
        scaler.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].clone(), output.clone())))
    net(x)
    assert len(seen) == len(scalers)
    assert all(torch.equal(output, 2 * scaled) for scaled, output in seen)
    seen.clear()
    net.eval()(x)
    assert all(torch.equal(output, scaled) for scaled, output in seen)


@both_nets
def test_scalers_before_batch_norm_only_change_the_effect_of_eps(make: Callable[..., nn.Module]) -> None:
    net = make(norm="batch", width=0.5).double().train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-12
    x = torch.rand(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = net(x)
    for module in net.modules():
        if isinstance(module, Scaler):
            module.width = 1.0
    assert torch.allclose(net(x), scaled, rtol=1e-6)


def test_the_resnet_is_initialised_as_in_the_paper() -> None:
    torch.manual_seed(0)
    net = MultiExitResNet(hidden=(64, 128), num_classes=5)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            # Kaiming-normal, fan out: in torch, a depthwise convolution has the fan of a full convolution.
            fan = module.out_channels * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.1), name
        elif isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


@both_nets
def test_exported_nets_accept_any_batch_size(make: Callable[..., nn.Module]) -> None:
    x = torch.rand(6, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    net = with_statistics(moved(make(norm="static_batch", depth=2, width=0.5)), x)
    exported = torch.export.export(net, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for size in (1, 6):
        assert torch.allclose(exported(x[:size]), net(x[:size]), atol=1e-5)


class SumOfExits(FederatedModule):
    """Sums the losses of all exits."""

    def loss(self, outputs: Tensor, targets: Tensor, ctx: ClientContext) -> Tensor:
        return torch.stack([F.cross_entropy(logits, targets) for logits in outputs]).sum()

    def predict(self, net: nn.Module, inputs: Tensor) -> Tensor:
        return torch.as_tensor(net(inputs)).mean(0)


@pytest.mark.parametrize(("make", "norm"), [(MultiExitConvNet, "static_batch"), (MultiExitResNet, "batch")])
def test_a_run_with_widths_and_depths_keeps_stages_without_holders(
    make: Callable[..., nn.Module], norm: str, fit: Callable[..., Trainer]
) -> None:
    levels = {"a": Level("a"), "b": Level("b", depth=1), "c": Level("c", 0.5, 2)}
    net = partial(make, in_channels=1, num_classes=10, hidden=(8, 16, 16), norm=norm)
    module = small_module(SumOfExits, net=net, levels=levels, assignment=Fixed({"b": 1, "c": 1}))
    before = {name: tensor.clone() for name, tensor in state_of(module.net).items()}
    fit(module, rounds=2, limit_val_batches=0)
    for name, tensor in state_of(module.net).items():
        assert torch.equal(tensor, before[name]) == name.startswith("stages.2"), name
        # The exit of stage 1 is held at half width only: its other half does not change either.
        if name.startswith("stages.1") and tensor.dim() == 1 and len(tensor) > 10:
            assert torch.equal(tensor[8:], before[name][8:])
            assert not torch.equal(tensor[:8], before[name][:8])
