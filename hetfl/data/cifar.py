"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), with the augmentation and constants of HeteroFL and DepthFL."""

from __future__ import annotations

from typing import ClassVar

from torchvision import datasets

from hetfl.data.arrays import Arrays
from hetfl.data.torchvision_data import TorchvisionData
from hetfl.data.transform import ImageTransform, Transform


class CIFAR10(TorchvisionData):
    """50,000 + 10,000 colour images 32 x 32 in ten classes; training crops (padding 4) and flips.

    The original files are pickled; torchvision reads them only if their checksums match the published ones.
    """

    folder: ClassVar[str] = "cifar-10-batches-py"

    def open(self, *, train: bool, download: bool) -> datasets.VisionDataset:  # noqa: D102
        return datasets.CIFAR10(self.root, train=train, download=download)

    def default_transform(self, arrays: Arrays) -> Transform:  # noqa: D102
        return ImageTransform(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), padding=4, flip=True)


class CIFAR100(TorchvisionData):
    """50,000 + 10,000 colour images 32 x 32 in a hundred classes; read and augmented like :class:`CIFAR10`.

    The normalisation constants are those of the Flower baseline of DepthFL.
    """

    folder: ClassVar[str] = "cifar-100-python"
    num_labels: ClassVar[int] = 100

    def open(self, *, train: bool, download: bool) -> datasets.VisionDataset:  # noqa: D102
        return datasets.CIFAR100(self.root, train=train, download=download)

    def default_transform(self, arrays: Arrays) -> Transform:  # noqa: D102
        return ImageTransform(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), padding=4, flip=True)
