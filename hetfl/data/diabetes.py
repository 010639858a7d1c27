"""A regression that comes with scikit-learn: real data without a download."""

from __future__ import annotations

import math

import torch

from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.module import FederatedDataModule
from hetfl.objectives import Regression

MEAN, STD = 152.13, 77.01
"""Mean and standard deviation of all targets."""


class Diabetes(FederatedDataModule):
    """442 patients with ten features each; the target is a measure of disease progression after a year, 25 to 346.

    Efron, Hastie, Johnstone, Tibshirani: Least Angle Regression, Annals of Statistics 2004. Features have mean 0 and
    variance 1. A fifth (89 patients) is the test set; it does not depend on the seed. The objective is regression;
    outputs of a net are in standard deviations from the mean of all targets.
    """

    def load(self) -> Arrays:  # noqa: D102
        from sklearn.datasets import load_diabetes
        from sklearn.model_selection import train_test_split

        features, progress = load_diabetes(return_X_y=True)
        inputs = torch.from_numpy(features * math.sqrt(len(features))).to(torch.get_default_dtype())
        targets = torch.from_numpy(progress)
        train, test = train_test_split(range(len(targets)), test_size=0.2, random_state=0)
        return Arrays(
            ClientData(inputs[train], targets[train]),
            ClientData(inputs[test], targets[test]),
            objective=Regression(offset=MEAN, scale=STD),
        )
