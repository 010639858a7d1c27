"""Image files in one folder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.module import FederatedDataModule
from hetfl.errors import ConfigurationError


class ImageFolder(FederatedDataModule):
    """Images in ``root/train/CLASS/`` and ``root/test/CLASS/``, read in colour by torchvision's ``ImageFolder``.

    Every image is decoded once, in :meth:`setup`, and kept as uint8; all images must have the same size.

    Args:
        root: the folder above ``train`` and ``test``.
        settings: the arguments of :class:`FederatedDataModule`.
    """

    def __init__(self, *, root: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.root = root

    def load(self) -> Arrays:  # noqa: D102
        train, test = (_open(Path(self.root) / part) for part in ("train", "test"))
        if train.classes != test.classes:
            raise ConfigurationError(
                f"Expected the same class folders in train and test below {self.root} "
                f"but got {sorted(set(train.classes) ^ set(test.classes))} in only one of them"
            )
        return Arrays(_decode(train), _decode(test), num_classes=len(train.classes))


def _open(folder: Path) -> datasets.ImageFolder:
    try:
        return datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"Expected one folder of images per class in {folder.resolve()} but got: {str(error).splitlines()[0]}"
        ) from error


def _decode(dataset: datasets.ImageFolder) -> ClientData:
    """Return every image of a folder, uint8 (n, 3, height, width)."""
    first = pil_to_tensor(dataset.loader(dataset.samples[0][0]))
    images = torch.empty((len(dataset.samples), *first.shape), dtype=torch.uint8)
    for position, (path, _) in enumerate(dataset.samples):
        try:
            image = pil_to_tensor(dataset.loader(path))
        except OSError as error:
            raise ConfigurationError(f"Expected an image in {path} but decoding it failed: {error}") from error
        if image.shape != first.shape:
            raise ConfigurationError(
                f"Expected all images of one size, {tuple(first.shape[1:])} like {dataset.samples[0][0]}, "
                f"but got {tuple(image.shape[1:])} in {path}"
            )
        images[position] = image
    return ClientData(images, torch.tensor(dataset.targets))
