"""Sparse training of a linear net of two layers in NumPy: what part rules with masks must reproduce."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hetfl.data import FederatedDataModule

Array = NDArray[np.float64]
Tensors = dict[str, Array]
FEATURES, HIDDEN, CLASSES = 6, 5, 3
WEIGHTS = ("first.weight", "second.weight")


class LinearNet(nn.Module):
    """Two linear layers without a nonlinearity, the second with a bias; ``width`` is not used."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN, bias=False)
        self.second = nn.Linear(HIDDEN, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(inputs.flatten(1)))
        return output


def values_of(net: nn.Module) -> Tensors:
    """Return a net's parameters."""
    return {name: each.detach().double().numpy().copy() for name, each in net.named_parameters()}


def client_arrays(data: FederatedDataModule, client: int) -> tuple[Array, NDArray[np.int64]]:
    """Return a client's inputs, as the net gets them, and its labels."""
    samples = data.client_data(client)
    inputs = data.transform.eval(samples.inputs)
    assert isinstance(inputs, Tensor)
    return inputs.double().flatten(1).numpy(), samples.targets.numpy()


def gradient(theta: Tensors, inputs: Array, labels: NDArray[np.int64]) -> Tensors:
    """Return the gradient of the mean cross-entropy, by hand."""
    hidden = inputs @ theta["first.weight"].T
    logits = hidden @ theta["second.weight"].T + theta["second.bias"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    error = odds / odds.sum(1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    error /= len(labels)
    return {
        "first.weight": (error @ theta["second.weight"]).T @ inputs,
        "second.weight": error.T @ hidden,
        "second.bias": error.sum(0),
    }


def masked(theta: Tensors, mask: Tensors) -> Tensors:
    """Return values with zeros outside of a mask."""
    return {name: value * mask.get(name, 1.0) for name, value in theta.items()}


def trained(
    theta: Tensors, mask: Tensors, inputs: Array, labels: NDArray[np.int64], *, lr: float, steps: int
) -> Tensors:
    """Return a client's values after steps of gradient descent on the entries of its mask."""
    present = masked(theta, mask)
    for _ in range(steps):
        slope = masked(gradient(present, inputs, labels), mask)
        present = {name: value - lr * slope[name] for name, value in present.items()}
    return present


def top(scores: Array, count: int, among: Array | None = None) -> Array:
    """Return the mask of the largest scores among some entries; of equal ones those at lower positions."""
    flat = scores.flatten() if among is None else np.where(among.flatten() > 0, scores.flatten(), -np.inf)
    mask = np.zeros(scores.size)
    mask[np.argsort(-flat, kind="stable")[:count]] = 1.0
    return mask.reshape(scores.shape)


def holder_mean(theta: Tensors, results: list[Tensors], masks: list[Tensors], sizes: list[int]) -> Tensors:
    """Return the mean over the holders of each entry, weighted by samples; an entry without holders stays."""
    new = {}
    for name, value in theta.items():
        weights = np.stack(
            [n * np.broadcast_to(mask.get(name, 1.0), value.shape) for n, mask in zip(sizes, masks, strict=True)]
        )
        total = weights.sum(0)
        mean = (weights * np.stack([result[name] for result in results])).sum(0) / np.where(total > 0, total, 1.0)
        new[name] = np.where(total > 0, mean, value)
    return new


class Clients:
    """All clients of a federation, who take part in every round, in NumPy.

    Args:
        data: their data.
        lr: learning rate.
        steps: local steps on all of a client's data.
    """

    def __init__(self, data: FederatedDataModule, lr: float, steps: int) -> None:
        self.arrays = [client_arrays(data, client) for client in range(data.num_clients)]
        self.sizes = [len(labels) for _, labels in self.arrays]
        self.lr, self.steps = lr, steps

    def gradients(self, theta: Tensors) -> list[Tensors]:
        """Return each client's gradient."""
        return [gradient(theta, *each) for each in self.arrays]

    def mean(self, of: list[Tensors]) -> Tensors:
        """Return the mean weighted by samples."""
        shares = np.array(self.sizes) / sum(self.sizes)
        return {name: sum(p * each[name] for p, each in zip(shares, of, strict=True)) for name in of[0]}

    def results(self, theta: Tensors, masks: list[Tensors]) -> list[Tensors]:
        """Return each client's values after training with its mask."""
        pairs = zip(masks, self.arrays, strict=True)
        return [trained(theta, mask, *each, lr=self.lr, steps=self.steps) for mask, each in pairs]

    def round(self, theta: Tensors, masks: list[Tensors]) -> Tensors:
        """Return the server's values after a round: the mean over the holders of each entry."""
        return holder_mean(theta, self.results(theta, masks), masks, self.sizes)
