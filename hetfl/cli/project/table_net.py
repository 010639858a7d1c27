"""A net of your own for tables. project.yaml names it as net.Net; hetfl calls it with the width of each level."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hetfl.models import Scaler, scaled


class Net(nn.Module):
    """Two hidden layers, and a linear layer.

    A sub-model of width 0.5 is the first half of the hidden units. So a net scales its hidden units by `width`, never
    its features and its classes, and every layer works on units that begin at the first. hetfl checks this at start.

    Args:
        in_channels: features of a row.
        num_classes: classes.
        hidden: units of the two hidden layers at width 1.
        width: share of the hidden units, in (0, 1].
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: Sequence[int], width: float = 1.0) -> None:
        super().__init__()
        first, second = (scaled(units, width) for units in hidden)
        # In training the Scaler makes up for the units that a narrow net lacks (HeteroFL).
        self.layers = nn.Sequential(
            nn.Linear(in_channels, first), Scaler(width), nn.ReLU(), nn.Linear(first, second), Scaler(width), nn.ReLU()
        )
        self.classifier = nn.Linear(second, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of features (N, in_channels)."""
        logits: Tensor = self.classifier(self.layers(features))
        return logits
