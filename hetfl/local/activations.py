"""The job of a client that reports how strongly each channel is active on samples of each class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hetfl.local.bench import Bench
from hetfl.local.executor import Result
from hetfl.local.jobs import plain_batches, report_of
from hetfl.submodel import state_of
from hetfl.types import Task


@dataclass(frozen=True)
class Reader:
    """A layer that reads channels: a convolution or a linear layer, whose inputs are the activations of the channels.

    Attributes:
        tensor: name of its weight.
        dim: the dimension of the weight by which it reads.
        block: number of positions per channel, which follow each other; above 1 for a flattened map.
    """

    tensor: str
    dim: int
    block: int = 1

    def layer(self, net: nn.Module) -> nn.Module:
        """Return the layer in a net."""
        return net.get_submodule(self.tensor.rpartition(".")[0])

    def channels(self, net: nn.Module) -> int:
        """Return the number of channels that it reads in a net; 0 if the net has no such layer."""
        tensor = state_of(net).get(self.tensor)
        return 0 if tensor is None else tensor.shape[self.dim] // self.block

    @staticmethod
    def known(layer: nn.Module) -> bool:
        """Return whether a layer is a convolution or a linear layer."""
        return isinstance(layer, nn.Linear | _ConvNd)


def sizes(layer: nn.Module, inputs: Tensor, channels: int) -> Tensor:
    """Return the mean absolute activation of each sample's channels, over all positions, shape (N, C).

    Args:
        layer: the convolution or linear layer that reads them.
        inputs: of the layer, shape (N, C, ...) for a convolution, or (N, ..., C) for a linear layer.
        channels: their number C; they have equal numbers of inputs, which follow each other.
    """
    inputs = inputs if isinstance(layer, _ConvNd) else inputs.movedim(-1, 1)
    return inputs.abs().reshape(len(inputs), channels, -1).mean(2)


def activations(bench: Bench, task: Task, readers: Sequence[Reader]) -> Result:
    """Pass all of a client's data through its sub-model once, and sum the mean absolute activations by class.

    The net is in training mode, for the Scaler and for norm layers without statistics; samples are not augmented. If a
    layer is called several times for a batch, the last call counts. The result's vector has the number of samples of
    each class, shape (K,), then for each reader in turn the sums, shape (K, C) with the C channels that the layer reads
    at the client's level; :func:`unpack_activations` reads it.

    Args:
        bench: the resident nets.
        task: the client, level, round and model.
        readers: the layers whose inputs are summed.
    """
    resident = bench.resident(task)
    resident.start(beyond_D=bench.beyond(task))
    net = resident.net.train()
    channels = [reader.channels(net) for reader in readers]
    classes, like = len(bench.data.labels(task.client)), resident.anchor_D
    counts_K = like.new_zeros(classes, dtype=torch.float64)
    totals = [like.new_zeros(classes, count, dtype=torch.float64) for count in channels]
    seen = dict[int, Tensor]()  # by reader, of the last call: a resident net may try a layout with one more pass

    def see(number: int, layer: nn.Module, given: tuple[Any, ...]) -> None:
        seen[number] = sizes(layer, given[0], channels[number]).double()

    with torch.no_grad(), ExitStack() as stack:
        for number, reader in enumerate(readers):
            if channels[number]:
                hook = reader.layer(net).register_forward_pre_hook(partial(see, number))
                stack.callback(hook.remove)
        for (inputs, labels_N), _ in plain_batches(bench, task, "activations"):
            net(inputs)
            counts_K += labels_N.bincount(minlength=classes)
            for number, sizes_NC in seen.items():
                totals[number].index_add_(0, labels_N, sizes_NC)
    vector = torch.cat([counts_K, *(each.flatten() for each in totals)]).to(like.dtype)
    return Result(task, report_of(bench, task, 0.0, int(counts_K.sum())), vector)


def unpack_activations(vector: Tensor, classes: int, channels: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return the counts of samples (K,), and for each reader its sums (K, C), of a vector of :func:`activations`.

    Args:
        vector: the vector.
        classes: number K of classes.
        channels: number C of channels of each reader.
    """
    counts_K, *sums = vector.split([classes, *(classes * count for count in channels)])
    return counts_K, [each.view(classes, count) for each, count in zip(sums, channels, strict=True)]
