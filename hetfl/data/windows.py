"""Windows of a text as samples of a language model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hetfl.data.arrays import ClientData
from hetfl.objectives import LanguageModelling

Targets = Literal["next", "same"]
"""The targets of a sample: the following token at each position, or the token itself."""

MASKED = 0.15
"""Fraction of masked tokens in HeteroFL's experiment."""


def language_objective(targets: Targets, size: int) -> LanguageModelling:
    """Return the default objective of a text: the following tokens, or masked tokens, of which all count.

    Args:
        targets: which tokens the targets are.
        size: number of tokens V of the vocabulary; V is the token in place of a masked one.
    """
    if targets == "next":
        return LanguageModelling()
    return LanguageModelling(masked=MASKED, mask_token=size, only_masked=False)


def windows(tokens: Tensor, length: int, targets: Targets, rows: int = 1) -> tuple[ClientData, Tensor]:
    """Return the samples of a text, inputs and targets (n, T), and the row of each sample, int64 (n,).

    The text is cut into rows of equal length, and each row into samples of T consecutive tokens. The tokens that are
    left over at the end of the text and of each row are dropped. Targets are tokens of the same row.

    Args:
        tokens: the text, int64, shape (L,).
        length: number of tokens T of a sample.
        targets: which tokens the targets are.
        rows: number of rows.

    >>> data, row = windows(torch.arange(11), 2, "next", rows=2)
    >>> data.inputs.tolist(), data.targets.tolist(), row.tolist()
    ([[0, 1], [2, 3], [5, 6], [7, 8]], [[1, 2], [3, 4], [6, 7], [8, 9]], [0, 0, 1, 1])
    """
    ahead = 1 if targets == "next" else 0
    per_row = len(tokens) // rows
    tokens_RL = tokens[: rows * per_row].view(rows, per_row)
    count = max(per_row - ahead, 0) // length
    inputs, wanted = (tokens_RL[:, start : start + count * length].reshape(-1, length) for start in (0, ahead))
    return ClientData(inputs, wanted), torch.arange(rows).repeat_interleave(count)
