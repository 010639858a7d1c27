"""Layers of the reference nets with hand-written forward and backward passes, in float64 NumPy.

Arrays are named by their dimensions: N samples, C channels, H and W of an image, F features. A layer reads its tensors
from a dictionary by ``<its name>.weight`` and so on, and writes its gradients into another dictionary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = dict[str, Array]

EPS = 1e-5
"""ε of every norm layer."""
EMA = 0.1
"""Weight of the newest batch in running statistics."""


@dataclass
class Pass:
    """The mode of a pass through a net.

    Attributes:
        training: the Scaler divides, norms normalise by the batch, and running statistics are updated.
        gathered: static norms normalise by the batch, and append its mean and unbiased variance to their list here.
        static: mean and variance to normalise by, for each static norm.
    """

    training: bool = False
    gathered: dict[str, list[tuple[Array, Array]]] | None = None
    static: dict[str, tuple[Array, Array]] = field(default_factory=dict)


class Layer:
    """A layer without tensors; ``flops`` counts a forward pass of one sample and returns the output shape."""

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        raise NotImplementedError

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        raise NotImplementedError

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return 0.0, shape


@dataclass
class Linear(Layer):
    name: str

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        return x @ theta[f"{self.name}.weight"].T + theta[f"{self.name}.bias"], x

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        grads[f"{self.name}.weight"] = dy.T @ cache
        grads[f"{self.name}.bias"] = dy.sum(0)
        return dy @ theta[f"{self.name}.weight"]

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        outgoing, incoming = theta[f"{self.name}.weight"].shape
        assert shape == (incoming,)
        return 2.0 * outgoing * incoming, (outgoing,)


@dataclass
class Conv(Layer):
    """A 3x3 convolution, padded by one pixel."""

    name: str

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        weight, (_, _, height, width) = theta[f"{self.name}.weight"], x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.zeros((len(x), len(weight), height, width)) + theta[f"{self.name}.bias"][:, None, None]
        for i, j in np.ndindex(3, 3):
            y += np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], weight[:, :, i, j])
        return y, padded

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        weight, (_, _, height, width) = theta[f"{self.name}.weight"], dy.shape
        d_weight, d_padded = np.zeros_like(weight), np.zeros_like(cache)
        for i, j in np.ndindex(3, 3):
            d_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", dy, cache[:, :, i : i + height, j : j + width])
            d_padded[:, :, i : i + height, j : j + width] += np.einsum("nohw,oc->nchw", dy, weight[:, :, i, j])
        grads[f"{self.name}.weight"], grads[f"{self.name}.bias"] = d_weight, dy.sum((0, 2, 3))
        return np.asarray(d_padded[:, :, 1:-1, 1:-1])

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        weight = theta[f"{self.name}.weight"]
        assert shape[0] == weight.shape[1]
        return 2.0 * weight.size * shape[1] * shape[2], (len(weight), *shape[1:])


@dataclass
class Norm(Layer):
    """Batch norm over all dimensions except channels: static (HeteroFL), or with running statistics if it has any."""

    name: str

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        axes, shape = (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
        mean, var = x.mean(axes), x.var(axes)
        count = x.size // len(mean)
        unbiased = var * count / max(count - 1, 1)
        running = (f"{self.name}.running_mean", f"{self.name}.running_var")
        if running[0] in theta:
            if how.training:
                for key, now in zip(running, (mean, unbiased), strict=True):
                    theta[key] = (1 - EMA) * theta[key] + EMA * now
            else:
                mean, var = theta[running[0]], theta[running[1]]
        elif how.gathered is not None:
            how.gathered.setdefault(self.name, []).append((mean, unbiased))
        elif not how.training:
            mean, var = how.static[self.name]
        deviation = np.sqrt(var + EPS).reshape(shape)
        normal = (x - mean.reshape(shape)) / deviation
        weight, bias = theta[f"{self.name}.weight"].reshape(shape), theta[f"{self.name}.bias"].reshape(shape)
        return normal * weight + bias, (normal, deviation)

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        normal, deviation = cache
        axes, shape = (0, *range(2, dy.ndim)), (1, -1, *(1,) * (dy.ndim - 2))
        grads[f"{self.name}.weight"], grads[f"{self.name}.bias"] = (dy * normal).sum(axes), dy.sum(axes)
        d_normal = dy * theta[f"{self.name}.weight"].reshape(shape)
        along = (d_normal * normal).mean(axes, keepdims=True)
        result: Array = (d_normal - d_normal.mean(axes, keepdims=True) - normal * along) / deviation
        return result


@dataclass
class Scale(Layer):
    """HeteroFL's Scaler: divides by the width ratio, in training only."""

    width: float

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        factor = 1 / self.width if how.training else 1.0
        return x * factor, factor

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        return np.asarray(dy * cache)


class Relu(Layer):
    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        return np.maximum(x, 0.0), x > 0

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        return np.asarray(dy * cache)


class Pool(Layer):
    """The maximum of every 2x2 pixels."""

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        n, c, height, width = x.shape
        windows = x.reshape(n, c, height // 2, 2, width // 2, 2).transpose(0, 1, 2, 4, 3, 5)
        flat = windows.reshape(n, c, height // 2, width // 2, 4)
        return flat.max(-1), (flat.argmax(-1), x.shape)

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        chosen, (n, c, height, width) = cache
        flat = np.zeros((*dy.shape, 4))
        np.put_along_axis(flat, chosen[..., None], dy[..., None], -1)
        windows = flat.reshape(n, c, height // 2, width // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5)
        return windows.reshape(n, c, height, width)

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return 0.0, (shape[0], shape[1] // 2, shape[2] // 2)


class Average(Layer):
    """The mean over all pixels."""

    def forward(self, theta: Tensors, x: Array, how: Pass) -> tuple[Array, Any]:
        return x.mean((2, 3)), x.shape

    def backward(self, theta: Tensors, dy: Array, cache: Any, grads: Tensors) -> Array:
        return np.asarray(np.broadcast_to(dy[:, :, None, None] / (cache[2] * cache[3]), cache))

    def flops(self, theta: Tensors, shape: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return 0.0, shape[:1]


def size_of(tensors: Tensors) -> int:
    """Return the number of entries."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())
