"""Every data set: reading its files or the user's data, and refused inputs."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from hetfl import data
from hetfl.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Arrays,
    ClientData,
    DatasetData,
    Digits,
    FashionMNIST,
    FederatedDataModule,
    ImageFolder,
    TensorData,
)
from hetfl.errors import ConfigurationError

SPLITS: tuple[Literal["train"], Literal["test"]] = ("train", "test")


def ready(module: FederatedDataModule) -> FederatedDataModule:
    module.setup("fit")
    return module


def test_digits_are_normalised_and_every_seed_has_the_same_test_set() -> None:
    first, other = ready(Digits(num_clients=10, seed=0)), ready(Digits(num_clients=10, seed=1))
    assert first.num_classes == 10
    assert sum(first.sizes) == 1293
    everything = torch.cat([first.client_data(k).inputs for k in range(10)])
    assert everything.dtype == torch.uint8
    assert everything.shape[1:] == (1, 8, 8)
    assert everything.max() == 16
    batch = first.transform.eval(everything)
    assert abs(float(batch.mean())) < 0.02
    assert abs(float(batch.std()) - 1) < 0.02
    test_images = [sorted(map(tuple, m.resident.all_test.inputs.flatten(1).tolist())) for m in (first, other)]
    assert test_images[0] == test_images[1]
    assert len(test_images[0]) == 360
    assert first.resident.all_test.targets.bincount().tolist() == pytest.approx([36] * 10, abs=2)


def write_idx(folder: Path, name: str, array: np.ndarray) -> None:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("data_set", [MNIST, FashionMNIST])
def test_idx_files_are_read(tmp_path: Path, data_set: type[MNIST]) -> None:
    folder = tmp_path / data_set.__name__ / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (40, 28, 28)), "t10k": rng.integers(0, 256, (20, 28, 28))}
    for part, pixels in images.items():
        write_idx(folder, f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder, f"{part}-labels-idx1-ubyte", np.arange(len(pixels)) % 10)
    module = ready(data_set(root=str(tmp_path), num_clients=4, val_fraction=0.1))
    assert module.num_classes == 10
    assert module.sizes == (9, 9, 9, 9)
    data = module.client_data(2)
    assert data.inputs.shape == (9, 1, 28, 28)
    for image, target in zip(data.inputs.numpy(), data.targets.tolist(), strict=True):
        (position,) = np.flatnonzero((images["train"] == image).all(axis=(1, 2)))
        assert target == position % 10


@pytest.mark.parametrize(
    ("data_set", "mean", "std"),
    [
        (CIFAR10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # HeteroFL authors' code
        (CIFAR100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # the baseline code of DepthFL
    ],
)
def test_colour_images_are_normalised_as_in_the_authors_code(
    data_set: type[CIFAR10 | CIFAR100], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    grey = ClientData(torch.full((1, 3, 32, 32), 128, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    seen = data_set().default_transform(Arrays(grey, grey, num_classes=1)).eval(grey.inputs)
    expected = [(128 / 255 - center) / spread for center, spread in zip(mean, std, strict=True)]
    assert seen[0, :, 5, 5].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("data_set", "folder"), [(MNIST, "MNIST/raw"), (CIFAR10, "cifar-10-batches-py")])
def test_missing_files_are_named_in_one_line(tmp_path: Path, data_set: type[MNIST], folder: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{re.escape(str(tmp_path / folder))}.*download: true") as error:
        ready(data_set(root=str(tmp_path)))
    assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)


def write_images(root: Path, part: str, size: int = 6, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (root / part / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.full((size, size, 3), (number * 100, i, len(part)), dtype=np.uint8)
            Image.fromarray(pixels).save(root / part / name / f"{i}.png")


def test_image_folders_are_decoded(tmp_path: Path) -> None:
    write_images(tmp_path, "train")
    write_images(tmp_path, "test")
    module = ready(ImageFolder(root=str(tmp_path), num_clients=3))
    assert module.num_classes == 2
    for k in range(3):
        data = module.client_data(k)
        assert data.inputs.dtype == torch.uint8
        assert data.inputs.shape[1:] == (3, 6, 6)
        assert torch.equal(data.inputs[:, 0, 3, 3].long(), data.targets * 100)
        assert (data.inputs[:, 2] == len("train")).all()
    assert (module.resident.all_test.inputs[:, 2] == len("test")).all()
    pixel = torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    assert module.transform.eval(pixel).flatten().tolist() == pytest.approx([-1, 1, -1])


def test_image_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(str(tmp_path / "train"))):
        ready(ImageFolder(root=str(tmp_path)))
    write_images(tmp_path, "train")
    write_images(tmp_path, "test", classes=("cat", "cow"))
    with pytest.raises(ConfigurationError, match=r"but got \['cow', 'dog'\] in only one of them"):
        ready(ImageFolder(root=str(tmp_path)))
    Image.new("RGB", (9, 6)).save(tmp_path / "train" / "dog" / "9.png")
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "dog")
    with pytest.raises(ConfigurationError, match=r"of one size, \(6, 6\).*but got \(6, 9\) in .*dog/9.png"):
        ready(ImageFolder(root=str(tmp_path)))
    (tmp_path / "train" / "dog" / "9.png").write_bytes(b"not an image")
    with pytest.raises(ConfigurationError, match=r"Expected an image in .*dog/9.png"):
        ready(ImageFolder(root=str(tmp_path)))


def test_any_torch_dataset_can_be_used() -> None:
    train = TensorDataset(torch.arange(60).float()[:, None], torch.arange(60) % 3)
    test = TensorDataset(torch.arange(1000, 1030).float()[:, None], torch.arange(30) % 3)
    ids = [i % 5 for i in range(60)]
    module = ready(DatasetData(train=train, test=test, train_clients=ids, test_clients=[i % 5 for i in range(30)]))
    assert (module.num_clients, module.num_classes) == (5, 3)
    for k in range(5):
        number = module.client_data(k).inputs[:, 0].long()
        assert len(number) > 0
        assert (number % 5 == k).all()
        assert torch.equal(module.client_data(k).targets, number % 3)
    assert module.client_data(2, "test").inputs[:, 0].tolist() == list(range(1002, 1030, 5))


class Pictures(Dataset[tuple[Image.Image, int]]):
    """PIL images of one size."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, position: int) -> tuple[Image.Image, int]:
        return Image.new("L", (5, 4), color=position), position % 2


def test_pil_images_become_uint8_tensors() -> None:
    module = ready(DatasetData(train=Pictures(), test=Pictures(), num_clients=2))
    data = module.client_data(0)
    assert data.inputs.dtype == torch.uint8
    assert data.inputs.shape == (9, 1, 4, 5)
    assert torch.equal(data.inputs[:, 0, 0, 0].long() % 2, data.targets)


class Items(Dataset[object]):
    """A data set of the given items."""

    def __init__(self, *items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> object:
        return self.items[position]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items(), "length above 0 but got Items"),
        (Items({"x": 1}), r"training items \(input, target\) but got dict at position 0"),
        (Items((torch.zeros(3), 0), (torch.zeros(2), 1)), r"of one shape, \(3,\), but got \(2,\) at position 1"),
        (Items((torch.zeros(3), 0.5)), "training targets as whole numbers .* but got torch.float32"),
    ],
)
def test_items_that_do_not_fit_are_refused(dataset: Items, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ready(DatasetData(train=dataset, test=dataset, num_clients=1))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_inputs": torch.zeros(9, 2)}, "as many training inputs as targets, at least one, but got 9 and 10"),
        ({"test_inputs": torch.zeros(4, 3)}, r"test inputs of shape \(2,\), like the training inputs, but got \(3,\)"),
        ({"train_inputs": torch.zeros(10, 2).int()}, r"test samples of int32 \(2,\), like .* but got float32"),
        ({"test_targets": torch.zeros(4)}, "test targets as whole numbers .* but got torch.float32"),
        ({"num_classes": 2}, r"training targets in \[0, 2\) but got 0 to 2"),
        ({"train_clients": [1, 2]}, r"one client id per training sample \(10\) but got shape \(2,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    fitting: dict[str, Any] = {
        "train_inputs": torch.zeros(10, 2),
        "train_targets": torch.arange(10) % 3,
        "test_inputs": torch.zeros(4, 2),
        "test_targets": torch.arange(4) % 3,
        "num_clients": 2,
    }
    ready(TensorData(**fitting))
    with pytest.raises(ConfigurationError, match=message):
        ready(TensorData(**{**fitting, **changed}))


DATA_SETS = [kind for kind in vars(data).values() if isinstance(kind, type) and issubclass(kind, FederatedDataModule)]


@pytest.mark.parametrize("kind", DATA_SETS, ids=lambda kind: kind.__name__)
def test_help_shows_the_settings_that_all_data_sets_share(kind: type[FederatedDataModule]) -> None:
    parser, shared = ArgumentParser(), ArgumentParser()
    parser.add_class_arguments(kind, "data")
    shared.add_class_arguments(FederatedDataModule, "data", instantiate=False)
    help_of_kind, help_of_all = parser.format_help(), shared.format_help()
    assert "--data.settings" not in help_of_kind
    # Some data sets define num_clients themselves, as their samples may name their clients.
    for setting in vars(shared.get_defaults().data).keys() - {"num_clients"}:
        (described,) = re.findall(rf"(?ms)^  --data\.{setting} .*?(?=^  -|\Z)", help_of_all)
        assert described.strip() in help_of_kind
