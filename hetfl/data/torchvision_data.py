"""What torchvision's data sets have in common."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torchvision.datasets import VisionDataset

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.client_transform import ClientTransform
from hetfl.data.module import FederatedDataModule
from hetfl.data.partition import Partitioner
from hetfl.data.transform import Transform
from hetfl.errors import ConfigurationError


class TorchvisionData(FederatedDataModule):
    """A data set that torchvision reads, and downloads on request, in its own layout below ``root``.

    Args:
        root: the folder that holds torchvision's folder of the data set.
        download: whether :meth:`prepare_data` fetches what is missing; needs a network.
        num_clients: see :class:`FederatedDataModule`, as the arguments that follow.
        partitioner: the rule that shares the training samples out; null: IID.
        transform: raw samples to batches; null: the data set's own.
        client_transform: what the samples of each client look like to it; null: all see the same.
        val_fraction: part of the training data held out for validation.
        min_samples: smallest number of training samples of a client.
        eval_batch_size: samples in a batch of validation and test.
        local_metrics: whether validation also runs over the clients' own test samples.
        seed: of the held-out samples and the partition.
    """

    folder: ClassVar[str]
    """What torchvision calls the folder below the root."""

    num_labels: ClassVar[int] = 10
    """Number of classes K."""

    def __init__(
        self,
        *,
        root: str = "data",
        download: bool = False,
        num_clients: int = 100,
        partitioner: Partitioner | None = None,
        transform: Transform | None = None,
        client_transform: ClientTransform | None = None,
        val_fraction: float = 0.1,
        min_samples: int = 2,
        eval_batch_size: int = 1000,
        local_metrics: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_clients=num_clients,
            partitioner=partitioner,
            transform=transform,
            client_transform=client_transform,
            val_fraction=val_fraction,
            min_samples=min_samples,
            eval_batch_size=eval_batch_size,
            local_metrics=local_metrics,
            seed=seed,
        )
        self.root, self.download = root, download

    @abstractmethod
    def open(self, *, train: bool, download: bool) -> VisionDataset:
        """Return torchvision's data set, with its ``data`` and ``targets``.

        Raises:
            RuntimeError: torchvision does not find it, or finds it damaged.
        """

    def prepare_data(self) -> None:
        """Download what is missing, if asked to; Lightning calls this on one process per machine."""
        if self.download:
            for train in (True, False):
                self.open(train=train, download=True)

    def load(self) -> Arrays:  # noqa: D102
        return Arrays(self._samples(train=True), self._samples(train=False), self.num_labels)

    def _samples(self, *, train: bool) -> ClientData:
        try:
            dataset = self.open(train=train, download=False)
        except (RuntimeError, OSError) as error:
            where = Path(self.root).resolve() / self.folder
            raise ConfigurationError(
                f"Expected the files of torchvision's {type(self).__name__} in {where} but they are missing or "
                "damaged: set root to the folder above, or download: true to fetch them"
            ) from error
        images = torch.as_tensor(dataset.data)
        # Grey images come without channels, colour images with channels last.
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return ClientData(images, torch.as_tensor(dataset.targets, dtype=torch.int64))
