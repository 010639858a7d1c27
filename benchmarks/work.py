"""The work of every side of a comparison of local rounds, and the bare loop for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import torch
from bare import BareLoop
from cnn import CNN
from torch import Tensor, nn
from torch.optim import SGD

from hetfl import HeteroFL
from hetfl.data import ImageTransform, TensorData
from hetfl.models import ConvNet
from hetfl.seeding import derive
from hetfl.types import Task

LR, MOMENTUM, WEIGHT_DECAY, CLIP, SEED = 0.1, 0.9, 5e-4, 1.0, 0
MEAN, STD = 0.1307, 0.3081
Work: TypeAlias = tuple[int, str, int]
"""A client of a round, its level, and the seed of its batches."""


@dataclass(frozen=True)
class Setting:
    """The work of a round. Client k has level ``levels[k % len(levels)]``; rounds take the clients in cyclic order.

    Attributes:
        levels: names of HeteroFL's levels in use.
        clients: number of clients of the federation.
        cohort: number of clients of a round.
        samples: number of training samples of a client.
        batch_size: samples of a step.
        epochs: passes over a client's samples.
        hidden: channels of the blocks of ConvNet at width 1.
        size: height and width of an image.
        channels: channels of an image.
        cnn: whether to use the CNN of the simulators' comparisons instead of ConvNet; only for level a.
    """

    levels: str = "d"
    clients: int = 100
    cohort: int = 10
    samples: int = 50
    batch_size: int = 10
    epochs: int = 1
    hidden: tuple[int, ...] = (64, 128, 256, 512)
    size: int = 28
    channels: int = 1
    cnn: bool = False

    loop: ClassVar[type[BareLoop]] = BareLoop
    """The class of the bare loop."""

    def net(self, *, width: float = 1.0) -> nn.Module:
        """Return the net of a width."""
        return CNN() if self.cnn else ConvNet(in_channels=self.channels, hidden=self.hidden, width=width)

    def level_net(self, level: str) -> nn.Module:
        """Return the net of a level."""
        return self.net(width=HeteroFL.default_levels[level].width)

    def samples_of_clients(self) -> list[tuple[Tensor, Tensor]]:
        """Return uint8 images and targets of every client."""
        data = self.data()
        clients = [data.client_data(k) for k in range(self.clients)]
        return [(client.inputs, client.targets) for client in clients]

    def tasks(self, number: int) -> list[Task]:
        """Return the tasks of a round; every round has a new version of the global model, which must be loaded."""
        clients = [(number * self.cohort + i) % self.clients for i in range(self.cohort)]
        return [Task(k, self.levels[k % len(self.levels)], number, number, LR) for k in clients]

    def data(self) -> TensorData:
        """Return uint8 noise; every client has 5 of the 10 classes, so that the loss is masked."""
        random = torch.Generator().manual_seed(1)
        shape = (self.channels, self.size, self.size)
        count = self.clients * self.samples
        images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=random)
        owner = torch.arange(self.clients).repeat_interleave(self.samples)
        targets = (torch.randint(5, (count,), generator=random) + owner) % 10
        data = TensorData(
            train_inputs=images,
            train_targets=targets,
            test_inputs=images[:: self.samples],
            test_targets=targets[:: self.samples],
            num_classes=10,
            train_clients=owner.tolist(),
            test_clients=list(range(self.clients)),
            transform=ImageTransform(mean=(MEAN,) * self.channels, std=(STD,) * self.channels),
            val_fraction=0.0,
        )
        data.setup()
        return data


def bare_loop(
    setting: Setting, data: TensorData, tensors: dict[str, Tensor], foreach: bool = False, device: str = "cpu"
) -> BareLoop:
    """Return the bare loop for the same clients and the same global tensors, with nets and data on a device."""
    nets = {level: setting.level_net(level).to(device) for level in setting.levels}
    clients = [data.client_data(k) for k in range(setting.clients)]
    return setting.loop(
        nets,
        list(tensors.values()),
        [(client.inputs.to(device), client.targets.to(device)) for client in clients],
        mean=255 * MEAN,
        std=255 * STD,
        optimizer=partial(SGD, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=foreach or None),
        clip=CLIP,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        foreach=foreach,
        num_classes=data.num_classes,
    )


def bare_work(setting: Setting, number: int) -> list[Work]:
    """Return the clients of a round in the form of the bare loop."""
    return [(t.client, t.level, derive(SEED, "local", number, t.client)) for t in setting.tasks(number)]
