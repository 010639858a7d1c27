"""Torch nets of the runs under test that hetfl does not provide."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hetfl.models import ConvNet


class Mlp(nn.Module):
    """One hidden layer, with or without running batch norm."""

    def __init__(self, width: float = 1.0, inputs: int = 5, hidden: int = 4, classes: int = 3, norm: bool = False):
        super().__init__()
        assert width == 1.0
        self.hidden = nn.Linear(inputs, hidden)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.relu(self.norm(self.hidden(x))))
        return logits


class DrawnConvNet(ConvNet):
    """HeteroFL's net; its initial values are drawn independently of its constructor's initialisation."""

    def __init__(self, width: float = 1.0, classes: int = 3, hidden: int = 3) -> None:
        super().__init__(num_classes=classes, hidden=(hidden,), width=width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)


class Exit(nn.Module):
    """A linear layer with ReLU, and a linear head."""

    def __init__(self, incoming: int, outgoing: int, classes: int) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(incoming, outgoing), nn.Linear(outgoing, classes)


class Exits(nn.Module):
    """Stages with a head each; returns all logits, shape (H, N, K)."""

    def __init__(
        self, width: float = 1.0, depth: int | None = None, inputs: int = 5, hidden: int = 4, classes: int = 3
    ) -> None:
        super().__init__()
        assert width == 1.0
        sizes = [inputs, hidden, hidden, hidden][: (depth or 3) + 1]
        self.stages = nn.ModuleList(Exit(i, o, classes) for i, o in pairwise(sizes))
        self.exits = len(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        logits = []
        for stage in self.stages:
            assert isinstance(stage, Exit)
            x = torch.relu(stage.layer(x))
            logits.append(stage.head(x))
        return torch.stack(logits)
