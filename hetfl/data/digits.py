"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.module import FederatedDataModule
from hetfl.data.transform import ImageTransform, Transform

MEAN, STD = 0.3053, 0.3760
"""Mean and standard deviation of all pixels, in units of the largest value, 16."""


class Digits(FederatedDataModule):
    """1,797 grey images 8 x 8 of ten digits, values 0 to 16 (UCI, Optical Recognition of Handwritten Digits).

    A fifth of each class (360 samples in total) is the test set; it does not depend on the seed.
    """

    def load(self) -> Arrays:  # noqa: D102
        inputs, targets, train, test = _digits()
        of_train, of_test = (ClientData(inputs[chosen], targets[chosen]) for chosen in (train, test))  # copies
        return Arrays(of_train, of_test, num_classes=10)

    def default_transform(self, arrays: Arrays) -> Transform:  # noqa: D102
        return ImageTransform(mean=(MEAN,), std=(STD,), maximum=16.0)


@cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all images and their classes, and the positions of the training and of the test set."""
    # Imported here because importing scikit-learn takes 0.25 s, and other data sets do not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(digits).to(torch.int64)
    train, test = train_test_split(range(len(targets)), test_size=0.2, stratify=digits, random_state=0)
    return inputs, targets, torch.tensor(train), torch.tensor(test)
