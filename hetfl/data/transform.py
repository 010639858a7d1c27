"""Transforms of raw samples into the float batches that nets take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hetfl.data.arrays import Arrays
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree, mapped, single


class Transform(ABC):
    """Turns a raw batch (N, ...) into the input of nets, in ``torch.get_default_dtype()``; may augment in training.

    If the inputs of a data set are a tuple, list or dict, the transform gets and may return such a tree.
    """

    @property
    def unit(self) -> float:
        """The raw value that is 1 after scaling: the unit of noise that is added to raw samples."""
        return 1.0

    @abstractmethod
    def train(self, inputs: Tree, generator: torch.Generator) -> Tree:
        """Return the batch for a training step; each sample is augmented independently, with ``generator``."""

    @abstractmethod
    def eval(self, inputs: Tree) -> Tree:
        """Return the batch for evaluation, without randomness."""


class Plain(Transform):
    """Converts floats and uint8 to the default type; other integers, such as token ids, and masks stay unchanged."""

    def train(self, inputs: Tree, generator: torch.Generator) -> Tree:  # noqa: D102
        return self.eval(inputs)

    def eval(self, inputs: Tree) -> Tree:  # noqa: D102
        return mapped(_plain, inputs)


def _plain(leaf: Tensor) -> Tensor:
    floats = leaf.is_floating_point() or leaf.dtype == torch.uint8
    return leaf.to(torch.get_default_dtype()) if floats else leaf


class ImageTransform(Transform):
    r"""Crops and flips at random (training), then scales and normalises per channel.

    .. math:: y_c = (x_c / \text{maximum} - \text{mean}_c) / \text{std}_c

    Crops are cut from the raw image with ``padding`` black pixels on every side, like torchvision's ``RandomCrop``
    before ``ToTensor`` and ``Normalize``: the border is raw 0, not the mean. Inputs have shape (N, C, H, W). They are
    uint8, or floats in the same units after a :class:`~hetfl.data.ClientTransform`. ``eval`` accepts further leading
    dimensions.

    Args:
        mean: mean per channel, in units of ``maximum``.
        std: standard deviation per channel, in units of ``maximum``.
        padding: black pixels on every side before a crop of the original size; 0: no crop.
        flip: mirror left and right with probability 1/2.
        maximum: the raw value of white.

    Raises:
        ConfigurationError: ``mean`` and ``std`` differ in length, a std or ``maximum`` is not positive, or ``padding``
            is negative.
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        padding: int = 0,
        flip: bool = False,
        maximum: float = 255.0,
    ) -> None:
        if len(mean) != len(std) or not mean:
            raise ConfigurationError(f"Expected one mean and one std per channel but got {len(mean)} and {len(std)}")
        if min(std) <= 0 or maximum <= 0 or padding < 0:
            raise ConfigurationError(
                f"Expected std > 0, maximum > 0 and padding >= 0 but got {std}, {maximum} and {padding}"
            )
        # YAML gives lists, but the cache below needs hashable tuples.
        self.mean, self.std, self.padding, self.flip, self.maximum = tuple(mean), tuple(std), padding, flip, maximum

    @property
    def unit(self) -> float:  # noqa: D102
        return self.maximum

    def train(self, inputs: Tensor, generator: torch.Generator) -> Tensor:  # noqa: D102
        if self.padding:
            inputs = random_crop(inputs, self.padding, generator)
        if self.flip:
            inputs = random_flip(inputs, generator)
        return self.eval(inputs)

    def eval(self, inputs: Tensor) -> Tensor:  # noqa: D102
        images = inputs.dtype == torch.uint8 or inputs.is_floating_point()
        if not images or inputs.dim() < 4 or inputs.shape[-3] != len(self.mean):
            raise ConfigurationError(
                f"Expected uint8 images of shape (N, {len(self.mean)}, height, width), one channel per mean, "
                f"but got {inputs.dtype} {tuple(inputs.shape)}"
            )
        dtype = torch.get_default_dtype()
        scale, shift = _affine(self.mean, self.std, self.maximum, dtype, inputs.device)
        return torch.addcmul(shift, inputs.to(dtype), scale)


def check_raw(arrays: Arrays, transform: Transform) -> None:
    """Refuse float images for :class:`ImageTransform`, which would treat 1.0 as nearly black.

    Raises:
        ConfigurationError: the transform is for images, and the inputs are not uint8 or not a single tensor.
    """
    if not isinstance(transform, ImageTransform):
        return
    dtype = single(arrays.train.inputs, "ImageTransform").dtype
    if dtype != torch.uint8:
        raise ConfigurationError(f"Expected uint8 images for ImageTransform but the data has {dtype}")


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Return a random H x W crop of each image (N, C, H, W) after zero padding on every side."""
    offsets_2N = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=generator).to(images.device)
    padded = F.pad(images, (padding,) * 4)
    # A view of all possible crops, (N, C, 2p+1, 2p+1, H, W): only the chosen crops are copied.
    crops = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)
    return crops[torch.arange(len(images), device=images.device), :, offsets_2N[0], offsets_2N[1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return each image (N, C, H, W) mirrored left and right with probability 1/2."""
    flipped_N = torch.rand(len(images), generator=generator).lt(0.5).to(images.device)
    return torch.where(flipped_N[:, None, None, None], images.flip(-1), images)


@lru_cache(maxsize=32)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], maximum: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, shape (C, 1, 1): the normalisation as one multiply-add, computed in float64."""
    mean_C, std_C = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (std_C * maximum), -mean_C / std_C
    return scale.to(device, dtype)[:, None, None], shift.to(device, dtype)[:, None, None]
