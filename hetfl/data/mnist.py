"""MNIST and Fashion-MNIST."""

from __future__ import annotations

from typing import ClassVar

from torchvision import datasets

from hetfl.data.arrays import Arrays
from hetfl.data.torchvision_data import TorchvisionData
from hetfl.data.transform import ImageTransform, Transform


class MNIST(TorchvisionData):
    """60,000 + 10,000 grey images 28 x 28 of ten digits (LeCun et al., 1998)."""

    folder: ClassVar[str] = "MNIST/raw"

    def open(self, *, train: bool, download: bool) -> datasets.VisionDataset:  # noqa: D102
        return datasets.MNIST(self.root, train=train, download=download)

    def default_transform(self, arrays: Arrays) -> Transform:  # noqa: D102
        return ImageTransform(mean=(0.1307,), std=(0.3081,))


class FashionMNIST(TorchvisionData):
    """60,000 + 10,000 grey images 28 x 28 of ten kinds of clothes (Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747)."""

    folder: ClassVar[str] = "FashionMNIST/raw"

    def open(self, *, train: bool, download: bool) -> datasets.VisionDataset:  # noqa: D102
        return datasets.FashionMNIST(self.root, train=train, download=download)

    def default_transform(self, arrays: Arrays) -> Transform:  # noqa: D102
        return ImageTransform(mean=(0.2860,), std=(0.3530,))
