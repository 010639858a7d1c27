"""A multilayer perceptron for tables of numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from hetfl.models.layers import Norm, Scaler, make_classifier, make_norm, scaled


class HiddenLayer(nn.Module):
    """A linear layer, the Scaler, a norm layer, ReLU.

    Args:
        incoming: units of the input.
        outgoing: units of the output.
        norm: kind of norm layer.
        width: ratio for the Scaler.
    """

    def __init__(self, incoming: int, outgoing: int, norm: Norm, width: float) -> None:
        super().__init__()
        self.linear, self.scaler = nn.Linear(incoming, outgoing), Scaler(width)
        self.norm = make_norm(norm, outgoing)

    def forward(self, x_NC: Tensor) -> Tensor:
        """Return the activations, shape (N, C)."""
        units_NC11 = self.scaler(self.linear(x_NC))[..., None, None]  # the norm layers take images
        return F.relu(self.norm(units_NC11).flatten(1))


class MLP(nn.Module):
    """Hidden layers, then a linear layer. Further dimensions of inputs are flattened.

    Args:
        in_channels: number of features; never scaled.
        num_classes: classes or other outputs K; never scaled.
        hidden: units of the hidden layers at width 1.
        norm: kind of norm layer.
        width: width ratio in (0, 1].
    """

    def __init__(
        self,
        in_channels: int = 64,
        num_classes: int = 10,
        hidden: Sequence[int] = (64, 64),
        norm: Norm = "static_batch",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        units = [in_channels, *(scaled(size, width) for size in hidden)]
        self.layers = nn.Sequential(*(HiddenLayer(i, o, norm, width) for i, o in itertools.pairwise(units)))
        self.classifier = make_classifier(units[-1], num_classes)

    def forward(self, x_N: Tensor) -> Tensor:
        """Return the outputs, shape (N, K), of inputs (N, ...)."""
        outputs_NK: Tensor = self.classifier(self.layers(x_N.flatten(1)))
        return outputs_NK
