"""The reference nets, made of stages with a head each, and the local objectives with their gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.reference.layers import (
    Array,
    Average,
    Conv,
    Layer,
    Linear,
    Norm,
    Pass,
    Pool,
    Relu,
    Scale,
    Tensors,
)

Labels = NDArray[np.int64]
Owned = NDArray[np.bool_]


@dataclass
class Net:
    """A net of stages. A stage has the layers of its trunk, and of the head that reads the trunk's output."""

    stages: list[tuple[list[Layer], list[Layer]]]

    def forward(
        self, theta: Tensors, x: Array, how: Pass
    ) -> tuple[list[Array], list[tuple[list[object], list[object]]]]:
        """Return every head's logits (N, K), first stage first, and the cache of the backward pass."""
        logits, caches = [], []
        for trunk, head in self.stages:
            x, of_trunk = _through(trunk, theta, x, how)
            out, of_head = _through(head, theta, x, how)
            logits.append(out)
            caches.append((of_trunk, of_head))
        return logits, caches

    def gradients(self, theta: Tensors, x: Array, how: Pass, objective: Objective) -> tuple[float, Tensors]:
        """Return the loss of a batch, and the gradients of the tensors."""
        logits, caches = self.forward(theta, x, how)
        loss, d_logits = objective(logits)
        grads: Tensors = {}
        d_x: Array | float = 0.0
        for (trunk, head), (of_trunk, of_head), d_out in reversed(
            list(zip(self.stages, caches, d_logits, strict=True))
        ):
            d_x = d_x + _back(head, theta, d_out, of_head, grads)
            d_x = _back(trunk, theta, d_x, of_trunk, grads)
        return loss, grads

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return the FLOPs of one sample for a forward pass, and for a forward and backward pass.

        The backward pass costs a forward pass for the weight gradients, and another one for the input gradients, except
        that the first layer needs no input gradients.
        """
        counts: list[float] = []
        for trunk, head in self.stages:
            for layer in trunk:
                count, shape = layer.flops(theta, shape)
                counts.append(count)
            inner = shape
            for layer in head:
                count, inner = layer.flops(theta, inner)
                counts.append(count)
        counts = [count for count in counts if count]
        return sum(counts), 3 * sum(counts) - counts[0]


def _through(layers: list[Layer], theta: Tensors, x: Array, how: Pass) -> tuple[Array, list[object]]:
    caches: list[object] = []
    for layer in layers:
        x, cache = layer.forward(theta, x, how)
        caches.append(cache)
    return x, caches


def _back(layers: list[Layer], theta: Tensors, dy: Array, caches: list[object], grads: Tensors) -> Array:
    for layer, cache in zip(reversed(layers), reversed(caches), strict=True):
        dy = layer.backward(theta, dy, cache, grads)
    return dy


def conv_net(width: float, blocks: int) -> Net:
    """HeteroFL's ConvNet: blocks of convolution, Scaler, norm, ReLU and pool (not after the last); mean; linear."""
    trunk: list[Layer] = []
    for number in range(blocks):
        name = f"blocks.{number}"
        trunk += [Conv(f"{name}.conv"), Scale(width), Norm(f"{name}.norm"), Relu()]
        trunk += [Pool()] if number + 1 < blocks else []
    return Net([([*trunk, Average()], [Linear("classifier")])])


def mlp(norm: bool = False) -> Net:
    """One hidden layer, with or without running batch norm."""
    between: list[Layer] = [Norm("norm")] if norm else []
    return Net([([Linear("hidden"), *between, Relu()], [Linear("classifier")])])


def exits(depth: int) -> Net:
    """Stages of one linear layer with ReLU, each with a linear head."""
    return Net([([Linear(f"stages.{i}.layer"), Relu()], [Linear(f"stages.{i}.head")]) for i in range(depth)])


@dataclass
class Objective:
    """A client's loss as a function of the logits of one batch.

    Attributes:
        targets: classes, shape (N,).
        zeroed: classes whose logits are set to 0 (HeteroFL's masked loss), shape (K,).
        distillation: weight w of the distillation between heads (DepthFL); 0: none.
    """

    targets: Labels
    zeroed: Owned | None = None
    distillation: float = 0.0

    def __call__(self, logits: list[Array]) -> tuple[float, list[Array]]:
        """Return the loss, and its gradient with respect to every head's logits."""
        rows, heads = np.arange(len(self.targets)), len(logits)
        seen = [z if self.zeroed is None else np.where(self.zeroed, 0.0, z) for z in logits]
        log_p = [z - z.max(1, keepdims=True) for z in seen]
        log_p = [z - np.log(np.exp(z).sum(1, keepdims=True)) for z in log_p]
        loss, gradients = 0.0, []
        for i, student in enumerate(log_p):
            loss -= student[rows, self.targets].mean()
            gradient = np.exp(student)
            gradient[rows, self.targets] -= 1
            for teacher in (np.exp(other) + 1e-7 for j, other in enumerate(log_p) if j != i and self.distillation):
                weight = self.distillation / (heads - 1)
                loss += weight * (teacher * (np.log(teacher) - student)).sum(1).mean()
                gradient += weight * (np.exp(student) * teacher.sum(1, keepdims=True) - teacher)
            gradient /= len(rows)
            gradients.append(gradient if self.zeroed is None else np.where(self.zeroed, 0.0, gradient))
        return float(loss), gradients


def ramp(round: int, rounds: int) -> float:
    """Return DepthFL's weight of distillation in a round."""
    return math.exp(-5 * (1 - min(round, rounds) / rounds) ** 2)
