"""The CNN that comparisons of simulators use on CIFAR-10 (apple/pfl-research, publications/pfl), without dropout."""

from __future__ import annotations

from torch import nn


class CNN(nn.Sequential):
    """Two 3x3 convolutions of 32 and 64 channels, max pool, linear layers of 128 and 10; 1.6 million parameters."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 14 * 14, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
