"""The local steps of a round in plain PyTorch, without the framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


class BareLoop:
    """One resident net, list of parameters and optimizer per level; clients are trained one after the other.

    Args:
        nets: the net of every level.
        tensors: the parameters of the global model, in the order of those of the nets.
        clients: uint8 images (n, C, H, W) and targets (n,) of every client.
        mean: mean of the raw pixels.
        std: standard deviation of the raw pixels.
        optimizer: makes the optimizer.
        clip: largest 2-norm of the gradient.
        epochs: passes over the data of a client.
        batch_size: samples of a step.
        foreach: clip all tensors in one call.
        num_classes: number of classes K.
    """

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        tensors: Sequence[Tensor],
        clients: Sequence[tuple[Tensor, Tensor]],
        *,
        mean: float,
        std: float,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        clip: float,
        epochs: int,
        batch_size: int,
        foreach: bool,
        num_classes: int = 10,
    ) -> None:
        self.nets = {level: net.train() for level, net in nets.items()}
        self.parameters = {level: list(net.parameters()) for level, net in nets.items()}
        self.optimizers = {level: optimizer(parameters) for level, parameters in self.parameters.items()}
        self.slices = {
            level: [
                whole.detach()[tuple(slice(0, size) for size in part.shape)]
                for whole, part in zip(tensors, parameters, strict=True)
            ]
            for level, parameters in self.parameters.items()
        }
        counts = [targets.flatten().bincount(minlength=num_classes) for _, targets in clients]
        self.clients = [(*client, count_K == 0) for client, count_K in zip(clients, counts, strict=True)]
        self.dtype = torch.get_default_dtype()
        self.mean, self.std, self.clip, self.foreach = mean, std, clip, foreach
        self.epochs, self.batch_size = epochs, batch_size
        self.loss = 0.0

    def round(self, work: Sequence[tuple[int, str, int]]) -> list[list[Tensor]]:
        """Return the delta of every client in a list of (client, level, seed)."""
        levels = dict.fromkeys(level for _, level, _ in work)
        starts = {level: [part.clone() for part in self.slices[level]] for level in levels}
        return [self.train(client, level, seed, starts[level]) for client, level, seed in work]

    def train(self, client: int, level: str, seed: int, start: Sequence[Tensor]) -> list[Tensor]:
        """Return the delta of a client, tensor by tensor."""
        net, parameters, optimizer = self.nets[level], self.parameters[level], self.optimizers[level]
        samples = len(self.clients[client][1])
        with torch.no_grad():
            for parameter, value in zip(parameters, start, strict=True):
                parameter.copy_(value)
        optimizer.state.clear()
        random = torch.Generator().manual_seed(seed)
        total = 0.0
        for _ in range(self.epochs):
            for batch in batches(torch.randperm(samples, generator=random), self.batch_size):
                loss = self.loss_of(net, client, batch)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, self.clip, foreach=self.foreach or None)
                optimizer.step()
                total += loss.item() * len(batch)
        self.loss = total / (self.epochs * samples)
        with torch.no_grad():
            return [parameter - value for parameter, value in zip(parameters, start, strict=True)]

    def loss_of(self, net: nn.Module, client: int, batch: Tensor) -> Tensor:
        """Return the loss of a batch of positions in the samples of a client."""
        images, targets, absent_K = self.clients[client]
        inputs = images[batch].to(self.dtype).sub_(self.mean).div_(self.std)
        return F.cross_entropy(net(inputs).masked_fill(absent_K, 0.0), targets[batch])


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Return the batches of an epoch; a last batch of one sample is merged with the previous batch."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1 < size:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
