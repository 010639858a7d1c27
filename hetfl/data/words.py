"""Words of a text, and their numbers in a vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError

PADDING, UNKNOWN = 0, 1
"""Tokens that are not words: the first pads short texts, the second stands for words outside the vocabulary."""


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, and each punctuation character as a word.

    >>> words_of("It's 3 o'clock.")
    ['it', "'", 's', '3', 'o', "'", 'clock', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


class Vocabulary:
    """The most frequent words of some texts, numbered from 2; equally frequent words are in alphabetical order.

    Args:
        texts: lists of words.
        size: number of tokens, :data:`PADDING` and :data:`UNKNOWN` included.

    Raises:
        ConfigurationError: the size is below 3.
    """

    def __init__(self, texts: Iterable[Sequence[str]], size: int) -> None:
        if size < 3:
            raise ConfigurationError(f"Expected a vocabulary of at least 3 tokens but got {size}")
        counts = Counter(word for text in texts for word in text)
        common = sorted(counts, key=lambda word: (-counts[word], word))[: size - 2]
        self.size, self._tokens = size, {word: token for token, word in enumerate(common, start=2)}

    def tokens(self, words: Sequence[str]) -> list[int]:
        """Return the token of each word."""
        return [self._tokens.get(word, UNKNOWN) for word in words]

    def padded(self, texts: Iterable[Sequence[str]], length: int) -> Tensor:
        """Return the first tokens of each text, int64, shape (n, T), padded with :data:`PADDING`."""
        rows = [self.tokens(text[:length]) for text in texts]
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows], dtype=torch.int64)
