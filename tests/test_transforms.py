"""Transforms from raw samples to batches, against loops over samples and torchvision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from hetfl.data import ImageTransform, Plain
from hetfl.data.transform import random_crop, random_flip
from hetfl.errors import ConfigurationError


def random_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random_generator(seed))


def test_crop_and_flip_match_a_loop_over_samples() -> None:
    images, padding = random_images(50, 3, 6, 8), 2
    offsets = torch.randint(0, 5, (2, 50), generator=random_generator(1)).tolist()
    cropped = random_crop(images, padding, random_generator(1))
    for i, image in enumerate(images):
        padded = np.zeros((3, 10, 12), dtype=np.uint8)
        padded[:, 2:8, 2:10] = image.numpy()
        top, left = offsets[0][i], offsets[1][i]
        np.testing.assert_array_equal(cropped[i].numpy(), padded[:, top : top + 6, left : left + 8])
    assert set(offsets[0]) == set(offsets[1]) == set(range(5))

    flips = (torch.rand(50, generator=random_generator(2)) < 0.5).tolist()
    flipped = random_flip(images, random_generator(2))
    assert True in flips
    assert False in flips
    for i, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(flipped[i].numpy(), image[:, :, ::-1] if flips[i] else image)


def test_training_pads_with_black_before_normalising() -> None:
    transform = ImageTransform(mean=(0.5,), std=(0.25,), padding=1)
    batch = transform.train(torch.full((200, 1, 1, 1), 255, dtype=torch.uint8), random_generator())
    white = (batch.flatten() - 2.0).abs() < 1e-5
    assert (batch.flatten()[~white] == -2.0).all()  # the border is black, which differs from the mean 0
    assert int(white.sum()) == pytest.approx(200 / 9, abs=15)


def test_training_transform_is_a_function_of_the_generator() -> None:
    images, transform = random_images(10, 3, 8, 8), ImageTransform((0.5,) * 3, (0.5,) * 3, padding=2, flip=True)
    first, again, other = (transform.train(images, random_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_augmentation_the_training_transform_equals_the_evaluation_transform() -> None:
    images, transform = random_images(10, 1, 8, 8), ImageTransform((0.13,), (0.31,))
    before = random_generator().get_state()
    generator = random_generator()
    assert torch.equal(transform.train(images, generator), transform.eval(images))
    assert torch.equal(generator.get_state(), before)


def test_evaluation_matches_torchvision() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    images = random_images(4, 3, 32, 32)
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([theirs(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    torch.testing.assert_close(ImageTransform(mean, std).eval(images), expected, rtol=1e-5, atol=1e-6)
    stacked = images.view(2, 2, 3, 32, 32)
    torch.testing.assert_close(ImageTransform(mean, std).eval(stacked).view(4, 3, 32, 32), expected)


def test_batches_have_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert ImageTransform((0.5,), (0.5,)).eval(random_images(2, 1, 4, 4)).dtype == torch.float64
        assert Plain().train(torch.ones(2, 3, dtype=torch.float32), random_generator()).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert ImageTransform((0.5,), (0.5,)).eval(random_images(2, 1, 4, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    "arguments",
    [{"mean": (0.5,), "std": (0.5, 0.5)}, {"mean": (), "std": ()}, {"mean": (0.5,), "std": (0.0,)},
     {"mean": (0.5,), "std": (0.5,), "padding": -1}, {"mean": (0.5,), "std": (0.5,), "maximum": 0.0}],
)  # fmt: skip
def test_impossible_transforms_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Expected"):
        ImageTransform(**arguments)


def test_images_with_other_channels_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"shape \(N, 1, height, width\).*but got torch.uint8 \(2, 3, 4, 4\)"):
        ImageTransform((0.5,), (0.5,)).eval(random_images(2, 3, 4, 4))
