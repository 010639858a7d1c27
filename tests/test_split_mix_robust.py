"""Split-Mix with robustness: a client against a bare loop, the attack, mixtures of branches, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F

from hetfl.errors import ConfigurationError
from hetfl.local import PGD, LocalTraining, Stacked
from hetfl.local.bench import Bench
from hetfl.local.jobs import train, training_batches
from hetfl.methods import SplitMix, SplitMixRobust
from hetfl.methods.split_mix_robust import perturbed_samples
from hetfl.models import SplitConvNet
from hetfl.models.dual_norm import DualNorm2d, mixed
from hetfl.seeding import generator
from hetfl.types import Task
from tests.conftest import small_data, small_levels, small_module
from tests.local_cases import sgd

Fit = Callable[..., Trainer]
ATTACK = PGD(0.2, 3, 0.1)
net_of = partial(SplitConvNet, hidden=(8, 16), bases=2, norm="dual")


def robust(kind: Any = SplitMixRobust, **changes: Any) -> Any:
    settings = {"net": net_of, "levels": small_levels(1.0, 0.5), "attack": ATTACK}
    return small_module(kind, **{**settings, **changes})


def forward(net: Any, x: Tensor, branch: str, tracks: bool) -> Tensor:
    """Return the logits of both base nets, layer by layer, with one branch of the norms."""
    for block in net.blocks:
        norm = getattr(block.norm, branch)
        x = block.conv(x)
        mean, var = (norm.running_mean, norm.running_var) if tracks else (None, None)
        x = F.relu(F.batch_norm(x, mean, var, norm.weight, norm.bias, training=True, momentum=0.1))
        x = block.pool(x) if hasattr(block, "pool") else x
    features = x.mean(dim=(2, 3)).chunk(2, dim=1)
    weights, biases = net.classifier.weight.chunk(2), net.classifier.bias.chunk(2)
    return torch.stack([f @ w.T + b for f, w, b in zip(features, weights, biases, strict=True)])


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(each, targets) for each in outputs]).sum()


@pytest.mark.usefixtures("double_precision")
def test_a_client_equals_a_bare_loop(fit: Fit) -> None:
    """Half of each batch is perturbed; the running statistics of a branch are those of its own samples."""
    local = LocalTraining(epochs=1, batch_size=10, optimizer=sgd(momentum=0.0))
    module, data, lr = robust(local=local), small_data(), 0.05
    fit(module, data, rounds=1, precision="64-true")
    bench, task = Bench(module.hosting.problem, data, module.models.tensors), Task(2, "a", 1, 7, lr)
    delta = train(bench, task).vector
    net: Any = module.levels.build("a").double().train()
    net.load_state_dict(module.net.state_dict(), strict=False)
    random = generator(module.seed, "method", 1, 2)
    for inputs, targets in training_batches(bench, task):
        count = perturbed_samples(len(targets), 0.5)
        loss = (len(targets) - count) * loss_of(forward(net, inputs[count:], "clean", True), targets[count:])
        if count:  # the last batch has two samples, and one of them would be too few
            some, aims = inputs[:count], targets[:count]
            noise = (2 * torch.rand(some.shape, generator=random) - 1) * 0.2
            for _ in range(3):
                noise = noise.detach().requires_grad_()
                raised = loss_of(forward(net, some + noise, "noisy", False), aims)
                slope = torch.autograd.grad(raised, noise)[0]
                noise = (noise.detach() + 0.1 * slope.sign()).clamp(-0.2, 0.2)
            loss = loss + count * loss_of(forward(net, some + noise, "noisy", True), aims)
        net.zero_grad()
        (loss / len(targets)).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= lr * ((0.0 if p.grad is None else p.grad) + 5e-3 * p)
    begun = dict(module.net.named_parameters()) | dict(module.net.named_buffers())
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    part = module.levels.indices["a"]
    expected = torch.cat([(after[name] - begun[name]).detach().flatten() for name in part])
    assert torch.allclose(delta, expected, rtol=0, atol=1e-12)
    views = part.layout.views(delta)
    assert views["blocks.0.norm.noisy.running_mean"].any()


def test_without_perturbed_samples_it_is_split_mix(fit: Fit) -> None:
    plain = small_module(SplitMix, net=partial(net_of, norm="batch"), levels=small_levels(1.0, 0.5))
    dual = robust(adversarial=0.0)
    fit(plain, rounds=2, name="plain")
    fit(dual, rounds=2, name="dual")
    tensors = dual.net.state_dict()
    for name, value in plain.net.state_dict().items():
        assert torch.equal(tensors[name.replace(".norm.", ".norm.clean.")], value), name


def test_the_attack_of_a_linear_model_is_the_sign_of_its_weights() -> None:
    weights, x = torch.randn(6), torch.randn(4, 6)
    noisy = PGD(0.3, 10, 0.1).perturbed(x, lambda inputs: (inputs @ weights).sum(), generator(0, "attack"))
    assert torch.allclose(noisy, x + 0.3 * weights.sign())
    one = PGD(0.3, 1, 0.01).perturbed(x, lambda inputs: (inputs @ weights).sum(), generator(0, "attack"))
    assert (one - x).abs().max() <= 0.3
    assert not torch.allclose(one, x, atol=0.02)


def test_every_layer_is_mixed() -> None:
    layer = DualNorm2d(3).eval()
    x = torch.randn(5, 3, 4, 4)
    for norm, scale in ((layer.clean, 1.0), (layer.noisy, 3.0)):
        norm.running_mean.copy_(torch.randn(3))  # type: ignore[union-attr]
        norm.weight.data.fill_(scale)
    for alpha in (0.0, 0.25, 1.0):
        with mixed(layer, alpha):
            assert torch.allclose(layer(x), (1 - alpha) * layer.clean(x) + alpha * layer.noisy(x))
    assert layer.alpha == 0.0
    before = layer.noisy.running_mean.clone()  # type: ignore[union-attr]
    layer.train()
    with mixed(layer, 1.0, tracks=False):
        layer(x)
    assert torch.equal(layer.noisy.running_mean, before)  # type: ignore[arg-type]
    assert layer.noisy.momentum == 0.1


def test_a_run_resumes_with_the_same_bits_and_measures_both_accuracies(fit: Fit, tmp_path: Path) -> None:
    whole, first, again = robust(), robust(), robust()
    fit(whole, rounds=3, name="whole")
    fit(first, rounds=1, name="first").save_checkpoint(tmp_path / "one.ckpt")
    fit(again, rounds=3, name="again", ckpt=str(tmp_path / "one.ckpt"))
    for tensor, other in zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        assert torch.equal(tensor, other)
    samples = small_data()
    samples.setup("fit")
    data = samples.client_data(0, "test")
    inputs, targets = samples.transform.eval(data.inputs), data.targets
    net = whole.submodel("a")
    for mixture in (0.0, 0.5, 1.0):
        clean, noisy = whole.robustness(net, inputs, targets, mixture)
        assert 0 <= noisy <= clean <= 1


def test_what_is_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"with dual norms for SplitMixRobust.* but got SplitConvNet without"):
        robust(net=partial(net_of, norm="batch"))
    with pytest.raises(ConfigurationError, match="mixture in .* for SplitMixRobust but got 0.5, 2"):
        robust(mixture=2.0)
    with pytest.raises(ConfigurationError, match="steps of at least 1 for PGD but got 0.1, 0.1, 0"):
        PGD(0.1, 0, 0.1)
    with pytest.raises(ConfigurationError, match=r"for executor Stacked but got SplitMixRobust\.local_loss"):
        fit(robust(executor=Stacked(2)), rounds=1)


def test_steps_of_the_attack_are_charged() -> None:
    assert robust(adversarial=0.5).training_flops("a", {"a": (2.0, 6.0)}) == 6.0 * (1 + 0.5 * 3)
    assert robust(adversarial=0.0).training_flops("a", {"a": (2.0, 6.0)}) == 6.0
