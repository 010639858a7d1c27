"""Features of samples for measures of data: a random projection, and the sums of features that a client sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from hetfl.errors import ConfigurationError
from hetfl.question import ClientView, Question
from hetfl.seeding import generator
from hetfl.tree import Tree, leaves


def projected(inputs: Tree, features: int, seed: int) -> Tensor:
    r"""Return features of samples, a random projection that is the same for all clients, shape (N, d), float64.

    .. math:: X = Z P, \qquad P_{e,f} \sim \mathcal{N}(0, 1/E)

    with Z the inputs of the net, whose E numbers per sample are one row each.

    Args:
        inputs: of N samples.
        features: number d of features.
        seed: of the projection.

    Raises:
        ConfigurationError: an input is no floating-point number.
    """
    parts = leaves(inputs)
    if wrong := next((part.dtype for part in parts if not part.is_floating_point()), None):
        raise ConfigurationError(f"Expected inputs of floating-point numbers to make features of but got {wrong}")
    rows_NE = torch.cat([part.flatten(1).double().cpu() for part in parts], dim=1)
    entries = rows_NE.shape[1]
    random = generator(seed, "features", entries, features)
    projection_Ed = torch.randn(entries, features, generator=random, dtype=torch.float64) / entries**0.5
    return torch.matmul(rows_NE, projection_Ed)


def classes_of(targets: Tensor) -> Tensor:
    """Return targets that are one class per sample, int64, shape (N,), on the CPU.

    Raises:
        ConfigurationError: targets are something else.
    """
    if targets.dim() != 1 or targets.is_floating_point():
        raise ConfigurationError(
            f"Expected one class per sample for a measure of labels but got targets of {targets.dtype} "
            f"{tuple(targets.shape)}"
        )
    return targets.long().cpu()


def penultimate(net: nn.Module, inputs: Tree) -> Tensor:
    """Return the inputs of the net's last linear layer that runs, flattened, shape (N, E).

    Raises:
        ConfigurationError: the net runs no linear layer.
    """
    last_inputs: list[Tensor] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        last_inputs[:] = [arguments[0]]

    hooks = [layer.register_forward_pre_hook(note) for layer in net.modules() if isinstance(layer, nn.Linear)]
    try:
        net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not last_inputs:
        raise ConfigurationError(
            f"Expected a net with a linear layer, whose inputs are features, but got {type(net).__name__}"
        )
    return last_inputs[0].flatten(1)


def of_client(client: ClientView, features: int, seed: int, of_net: bool = False) -> Tensor:
    """Return the features of all of a client's samples, shape (n, d), float64.

    Args:
        client: has the samples.
        features: number d of features.
        seed: of the projection.
        of_net: whether the projection is that of :func:`penultimate`, and not of the net's inputs.
    """
    net = client.net
    assert not of_net or net is not None, "such a question uses the model"
    sources = (inputs if net is None or not of_net else penultimate(net, inputs) for inputs, _ in client.batches)
    return torch.cat([projected(each, features, seed) for each in sources])


@dataclass(frozen=True)
class FeatureQuestion(Question):
    """Base class of questions about features.

    Attributes:
        features: number d of features.
        seed: of the projection.
    """

    features: int
    seed: int

    def flops(self, samples: int, entries: int) -> float:
        """Return the operations of the projection and of a d x d product."""
        return 2.0 * samples * self.features * (entries + self.features)


@dataclass(frozen=True)
class Moments(FeatureQuestion):
    """The number of a client's samples, then the sums of its features and of their squares: 1 + 2 d numbers."""

    @property
    def size(self) -> int:  # noqa: D102
        return 1 + 2 * self.features

    def answer(self, client: ClientView) -> Tensor:  # noqa: D102
        x_nd = of_client(client, self.features, self.seed, self.uses_model)
        return torch.cat([x_nd.new_tensor([len(x_nd)]), x_nd.sum(0), x_nd.square().sum(0)])


@dataclass(frozen=True)
class NetMoments(Moments):
    """The same sums for features of the net that the client receives."""

    uses_model: ClassVar[bool] = True


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each feature, shape (d,) each, of an answer to :class:`Moments`, or a sum."""
    count, features = sums[0], (len(sums) - 1) // 2
    mean_d = sums[1 : 1 + features] / count
    return mean_d, (sums[1 + features :] / count - mean_d.square()).clamp(min=0.0)


def valid_moments(sums: Tensor) -> bool:
    """Return whether an answer to :class:`Moments` can be true: samples, and no square below that of the mean."""
    features = (len(sums) - 1) // 2
    squares_d = sums[1 + features :] / sums[0].clamp(min=1.0)
    means_d = sums[1 : 1 + features] / sums[0]  # the sums travel as float32
    return bool(sums[0] >= 1) and bool((squares_d * (1 + 1e-5) >= means_d.square()).all())
