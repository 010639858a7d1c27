"""Channels that speak for a class: TF-IDF against sums by hand, and which channels are chosen."""

from __future__ import annotations

from math import log

import pytest
import torch

from hetfl.pruning.channels.class_channels import most_telling, tf_idf

ACTIVATIONS = [[4.0, 1.0, 3.0], [0.0, 1.0, 1.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]
"""Four classes, three channels; means 1, 1.5 and 1. Channels 0 and 1 speak for one class, channel 2 for two."""


def test_tf_idf_equals_sums_by_hand() -> None:
    alone, shared = log(5 / 2), log(5 / 3)
    expected = [
        [4 / 8 * alone, 1 / 8 * alone, 3 / 8 * shared],
        [0.0, 1 / 2 * alone, 1 / 2 * shared],
        [0.0, 1.0 * alone, 0.0],
        [0.0, 0.0, 0.0],
    ]
    torch.testing.assert_close(tf_idf(torch.tensor(ACTIVATIONS)), torch.tensor(expected, dtype=torch.float64))


def test_a_channel_that_is_equally_active_for_all_classes_speaks_for_none() -> None:
    assert tf_idf(torch.tensor([[2.0, 0.0], [2.0, 5.0], [2.0, 0.0]]))[:, 0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "share", "first", "expected"),
    [
        ([0.1, 0.9, 0.8, 0.7], 0.5, 4, [1, 2]),
        ([0.5, 0.5, 0.5, 0.5], 0.5, 1, [1, 2]),  # the only channel of the narrowest level stays
        ([0.9, 0.8, 0.1, 0.0], 0.5, 2, [0, 2]),  # of the first two, the one with the lower score stays
        ([0.9, 0.8, 0.7], 0.99, 3, [0, 1]),
        ([0.9, 0.0, 0.0, 0.0], 0.5, 4, [0]),
        ([0.9, 0.8, 0.7, 0.6], 0.12, 4, []),
        ([0.9, 0.8, 0.7, 0.6], 0.13, 4, [0]),
    ],
)
def test_the_highest_scores_are_chosen(scores: list[float], share: float, first: int, expected: list[int]) -> None:
    assert most_telling(torch.tensor(scores), share, first).tolist() == expected
