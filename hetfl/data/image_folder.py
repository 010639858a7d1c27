"""Image files in one folder per class."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.client_transform import ClientTransform
from hetfl.data.module import FederatedDataModule
from hetfl.data.partition import Partitioner
from hetfl.data.transform import Transform
from hetfl.errors import ConfigurationError


class ImageFolder(FederatedDataModule):
    """Images in ``root/train/CLASS/`` and ``root/test/CLASS/``, read as torchvision's ``ImageFolder`` does, in colour.

    Every image is decoded once, at :meth:`setup`, and kept as uint8; all must have the same size.

    Args:
        root: the folder above ``train`` and ``test``.
        num_clients: see :class:`FederatedDataModule`, as the arguments that follow.
        partitioner: the rule that shares the training samples out; null: IID.
        transform: raw samples to batches; null: to [-1, 1], without augmentation.
        client_transform: what the samples of each client look like to it; null: all see the same.
        val_fraction: part of the training data held out for validation.
        min_samples: smallest number of training samples of a client.
        eval_batch_size: samples in a batch of validation and test.
        local_metrics: whether validation also runs over the clients' own test samples.
        seed: of the held-out samples and the partition.
    """

    def __init__(
        self,
        *,
        root: str,
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
        self.root = root

    def load(self) -> Arrays:  # noqa: D102
        train, test = (_open(Path(self.root) / part) for part in ("train", "test"))
        if train.classes != test.classes:
            raise ConfigurationError(
                f"Expected the same class folders in train and test below {self.root} "
                f"but only one of them has {sorted(set(train.classes) ^ set(test.classes))}"
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
