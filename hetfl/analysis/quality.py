"""The quality of the predictions of a level: calibration of its confidence, and accuracy per class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from hetfl.errors import ConfigurationError

BELOW_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1. It puts a confidence of 1 into the last bin; torchmetrics has an extra bin for 1."""


def check_classes(outputs_NK: Tensor, targets_N: Tensor) -> None:
    """Refuse outputs and targets that are not those of a classification.

    Raises:
        ConfigurationError: the outputs are not logits (N, K), or the targets are not classes (N,) below K.
    """
    shaped = outputs_NK.ndim == 2 and outputs_NK.is_floating_point() and targets_N.shape == outputs_NK.shape[:1]
    whole = not targets_N.is_floating_point() and targets_N.dtype != torch.bool
    if not (
        shaped
        and whole
        and (not len(targets_N) or 0 <= int(targets_N.min()) <= int(targets_N.max()) < outputs_NK.shape[1])
    ):
        raise ConfigurationError(
            "Expected logits (N, K) and classes (N,) of a classification but got outputs "
            f"{tuple(outputs_NK.shape)} and {targets_N.dtype} targets {tuple(targets_N.shape)}"
        )


def calibration_error(logits_NK: Tensor, targets_N: Tensor, bins: int = 15) -> float:
    r"""Return the expected calibration error of the predicted class, in [0, 1].

    .. math:: \mathrm{ECE} = \sum_b \frac{|B_b|}{N} \left| \mathrm{acc}(B_b) - \mathrm{conf}(B_b) \right|

    over B bins of equal width for the confidence, which is the largest softmax probability.

    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, equation 3.

    Args:
        logits_NK: logits.
        targets_N: classes.
        bins: number of bins B.

    Raises:
        ConfigurationError: the outputs and targets are not those of a classification.
    """
    check_classes(logits_NK, targets_N)
    # torchmetrics would treat logits in [0, 1] as probabilities.
    probabilities = logits_NK.softmax(-1).clamp(max=BELOW_ONE)
    return float(multiclass_calibration_error(probabilities, targets_N, logits_NK.shape[1], n_bins=bins))


def reliability(logits_NK: Tensor, targets_N: Tensor, bins: int = 15) -> pd.DataFrame:
    """Return the table of a reliability diagram: accuracy and confidence per bin.

    Σ samples · |accuracy − confidence| / N is :func:`calibration_error`.

    Args:
        logits_NK: logits.
        targets_N: classes.
        bins: number of bins B of equal width; only the last bin includes its upper end.

    Returns:
        A row per bin: ``low``, ``high``, ``samples``, ``confidence`` (mean) and ``accuracy``; the last two are NaN in
        an empty bin.

    Raises:
        ConfigurationError: the outputs and targets are not those of a classification.
    """
    check_classes(logits_NK, targets_N)
    confidence, predicted = logits_NK.softmax(-1).clamp(max=BELOW_ONE).float().max(-1)
    right = (predicted == targets_N).double().numpy()
    edges = torch.linspace(0, 1, bins + 1).numpy()
    place = np.searchsorted(edges, confidence.numpy(), side="right") - 1
    samples, confidences, rights = (
        np.bincount(place, weights, minlength=bins) for weights in (None, confidence.double().numpy(), right)
    )
    table = pd.DataFrame({"low": edges[:-1], "high": edges[1:], "samples": samples})
    filled = table["samples"].where(table["samples"] > 0)
    return table.assign(confidence=confidences / filled, accuracy=rights / filled)


def class_accuracy(logits: Mapping[str, Tensor], targets_N: Tensor) -> pd.DataFrame:
    r"""Return the fraction of the samples of each class that each level classifies correctly (recall).

    .. math:: a_{k} = C_{kk} / \sum_j C_{kj}, \qquad C_{kj} = |\{n : y_n = k,\ \hat y_n = j\}|

    Args:
        logits: logits (N, K) by level or any other name of a column.
        targets_N: classes.

    Returns:
        A row per class, a column per level, in [0, 1]; NaN for a class without samples.

    Raises:
        ConfigurationError: the outputs and targets are not those of a classification.
    """
    columns = {}
    for level, logits_NK in logits.items():
        check_classes(logits_NK, targets_N)
        counts_KK = multiclass_confusion_matrix(logits_NK, targets_N, num_classes=logits_NK.shape[1]).double()
        columns[level] = (counts_KK.diag() / counts_KK.sum(1)).numpy()
    return pd.DataFrame(columns).rename_axis(index="class")
