"""The base class of the data sets that torchvision reads."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.datasets import VisionDataset

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.module import FederatedDataModule
from hetfl.errors import ConfigurationError


class TorchvisionData(FederatedDataModule):
    """A data set that torchvision reads, and downloads on request, in the layout of torchvision below ``root``.

    Args:
        root: the folder that holds torchvision's folder of the data set.
        download: whether :meth:`prepare_data` downloads missing files; needs a network.
        settings: the arguments of :class:`FederatedDataModule`.
    """

    folder: ClassVar[str]
    """Name of the folder that torchvision uses below the root."""

    num_labels: ClassVar[int] = 10
    """Number of classes K."""

    def __init__(self, *, root: str = "data", download: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        self.root, self.download = root, download

    @abstractmethod
    def open(self, *, train: bool, download: bool) -> VisionDataset:
        """Return torchvision's data set, with its ``data`` and ``targets``.

        Raises:
            RuntimeError: torchvision does not find it, or finds it damaged.
        """

    def prepare_data(self) -> None:
        """Download missing files if ``download`` is set; Lightning calls this on one process per machine."""
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
        # Grey images have no channel dimension; colour images have it last.
        images = images.unsqueeze(1) if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
        return ClientData(images, torch.as_tensor(dataset.targets, dtype=torch.int64))
