"""Your own net for tables. project.yaml names it as net.Net; hetfl calls it with the width of each level."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hetfl.models import Scaler, scaled


class Net(nn.Module):
    """Two hidden layers, and a linear layer.

    A sub-model of width 0.5 is the first half of the hidden units. So `width` scales the hidden units, but not the
    features and the classes, and every layer takes the first units of its input. hetfl checks this at start.

    Args:
        in_channels: number of features of a row.
        num_classes: number of classes.
        hidden: units of the two hidden layers at width 1.
        width: share of the hidden units, in (0, 1].
    """

    def __init__(self, in_channels: int, num_classes: int, hidden: Sequence[int], width: float = 1.0) -> None:
        super().__init__()
        first, second = (scaled(units, width) for units in hidden)
        # In training, the Scaler compensates for the units that a narrow net lacks (HeteroFL).
        self.layers = nn.Sequential(
            nn.Linear(in_channels, first), Scaler(width), nn.ReLU(), nn.Linear(first, second), Scaler(width), nn.ReLU()
        )
        self.classifier = nn.Linear(second, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, classes) of features (N, in_channels)."""
        logits: Tensor = self.classifier(self.layers(features))
        return logits
