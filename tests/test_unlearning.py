"""Activations that clients report, against plain sums, and their costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from hetfl import FederatedModule, HeteroFL, Level
from hetfl.data import FederatedDataModule
from hetfl.local import Executor, Sequential, Workers
from hetfl.parts import RandomChannels
from hetfl.pruning.channels.groups import channel_groups
from hetfl.submodel import take
from hetfl.unlearning import mean_activations, readers_of, telling_channels
from hetfl.wire import dense_size
from tests.conftest import small_data, small_module, small_net

Fit = Callable[..., Trainer]
CHANNELS = {"a": (8, 16), "b": (4, 8), "c": (2, 4)}
WIDTHS = {"a": 1.0, "b": 0.5, "c": 0.25}


class Asking(Callback):
    """Asks all clients at the end of a test, and keeps the answers and the costs."""

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FederatedModule)
        before = pl_module.ledger.state_dict()
        groups = channel_groups(pl_module.levels.net, pl_module.levels.samples)
        readers = [(group, readers_of(pl_module, group)) for group in groups]
        self.counts_K, self.means = mean_activations(pl_module, readers)
        after = pl_module.ledger.state_dict()
        self.costs = {name: after[name] - before[name] for name in after if name != "up_share"}


def answers(fit: Fit, executor: Executor) -> tuple[FederatedModule, FederatedDataModule, Asking]:
    data, asking = small_data(num_clients=5), Asking()
    net = partial(small_net, norm="none")
    module = small_module(net=net, executor=executor, parts=RandomChannels())
    trainer = fit(module, data, rounds=2, precision="64-true", limit_val_batches=0, callbacks=[asking])
    trainer.test(module, datamodule=data, verbose=False)
    return module, data, asking


def inputs_of_readers(weights: dict[str, Tensor], width: float, inputs: Tensor) -> list[Tensor]:
    """Return the mean absolute inputs of the second convolution and of the classifier, by sample and channel."""
    hidden = inputs
    for block in (0, 1):
        kernel, bias = (weights[f"blocks.{block}.conv.{name}"] for name in ("weight", "bias"))
        hidden = F.relu(F.conv2d(hidden, kernel, bias, padding=1) / width)
        if block == 0:
            hidden = F.max_pool2d(hidden, 2)
            first = hidden.abs().mean((2, 3))
    return [first, hidden.mean((2, 3)).abs()]


def test_mean_activations_equal_a_plain_loop_for_every_executor(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.local.jobs.PLAIN_BATCH", 50)  # several batches per client
    module, data, asking = answers(fit, Sequential())
    torch.set_default_dtype(torch.float64)  # as Lightning does in a run of precision 64-true
    try:
        expected = plain_means(module, data)
    finally:
        torch.set_default_dtype(torch.float32)
    for got, means in zip(asking.means, expected, strict=True):
        torch.testing.assert_close(got, means, rtol=1e-12, atol=1e-12)
    targets = torch.cat([samples.targets for samples in data.resident.train])
    assert asking.counts_K.tolist() == targets.bincount(minlength=10).tolist()
    _, _, by_workers = answers(fit, Workers(2))
    for got, other in zip(asking.means, by_workers.means, strict=True):
        assert torch.equal(got, other)


def plain_means(module: FederatedModule, data: FederatedDataModule) -> list[Tensor]:
    """Return the mean activations of both groups, summed up sample by sample over the clients that hold a channel."""
    sums, counts = ([torch.zeros(10, size) for size in CHANNELS["a"]] for _ in range(2))
    for client, level in enumerate(module.assignment.levels(1)):
        part, samples = module.parts.part(level, 1, client), data.client_data(client)
        weights = {name: take(p.detach(), part[name]) for name, p in module.net.named_parameters()}
        held = [part["blocks.1.conv.weight"][1], part["classifier.weight"][1]]
        for position, label in enumerate(samples.targets.tolist()):
            image = data.transform.eval(samples.inputs[position : position + 1])
            for group, sizes_1C in enumerate(inputs_of_readers(weights, WIDTHS[level], image)):
                sums[group][label, held[group]] += sizes_1C[0]
                counts[group][label, held[group]] += 1
    return [total / count.clamp(min=1) for total, count in zip(sums, counts, strict=True)]


def test_the_question_costs_a_download_a_forward_pass_and_the_sums(fit: Fit) -> None:
    module, data, asking = answers(fit, Sequential())
    levels = module.assignment.levels(1)
    up = sum(dense_size(10 * (1 + sum(CHANNELS[level])), 0) for level in levels)
    assert asking.costs["up_bytes"] == up
    flops = sum(module.levels.flops[level][0] * size for level, size in zip(levels, data.sizes, strict=True))
    assert asking.costs["flops"] == pytest.approx(flops)
    down = sum(dense_size(module.parts.part(level, 1, k).size, itemsize=8) for k, level in enumerate(levels))
    assert down <= asking.costs["down_probes_bytes"] < 1.1 * down  # positions, where they are new
    assert asking.costs["seconds"] >= 0


def test_the_chosen_channels_are_those_of_the_class_alone(fit: Fit) -> None:
    """One filter of the first block sees only images of one class, and one channel of the second reads it alone."""

    class Marked(Callback):
        def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.pruned = telling_channels(pl_module, 3, 0.13)

    data, asking = small_data(num_clients=4), Marked()
    data.setup()
    for samples in data.resident.train:  # class 3 has one bright corner, and nobody else has
        samples.inputs[..., -1, -1] = torch.where(samples.targets == 3, 16, 0)[:, None].to(torch.uint8)
    module = small_module(HeteroFL, net=partial(small_net, norm="none"), levels={"a": Level("a")})
    net: Any = module.net
    with torch.no_grad():
        kernel = net.blocks[0].conv.weight
        kernel[5].zero_()
        kernel[5, 0, 1, 1] = 100.0
        kernel[5, 0, :, 0] = -100.0
        kernel[5, 0, 0, :] = -100.0
        net.blocks[0].conv.bias[5] = -50.0
        net.blocks[1].conv.weight[11].zero_()
        net.blocks[1].conv.weight[11, 5] = 1.0
        net.blocks[1].conv.bias[11] = 0.0
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[asking], enable_checkpointing=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert [(group.size, len(group.channels)) for group in asking.pruned] == [(8, 1), (16, 2)]
    assert asking.pruned[0].channels == [5]
    assert 11 in asking.pruned[1].channels
