"""Words of a text, and their numbers in a vocabulary."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.reading import LARGEST_DATA, check_size

PADDING, UNKNOWN = 0, 1
"""Tokens that are not words: the first pads short texts, the second stands for words outside the vocabulary."""


def text_in(path: Path, encoding: str) -> str:
    """Return the text of a file.

    Raises:
        ConfigurationError: the file is missing, too large, or not a text in this encoding.
    """
    try:
        check_size(path, LARGEST_DATA)
        return path.read_text(encoding)
    except (OSError, ValueError, LookupError) as error:
        raise ConfigurationError(f"Expected a text file in {path} but got: {str(error).splitlines()[0]}") from error


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, and each punctuation character as a word.

    >>> words_of("It's 3 o'clock.")
    ['it', "'", 's', '3', 'o', "'", 'clock', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


class Vocabulary:
    """The most frequent words of some texts, behind some special ones; equal ones are in alphabetical order.

    Args:
        texts: lists of words.
        size: number of tokens, special ones included; None: that of all words.
        special: the words of tokens 0, 1, ...; by default two that no text has, for :data:`PADDING` and
            :data:`UNKNOWN`.
        unknown: the special word in place of words outside the vocabulary.

    Raises:
        ConfigurationError: the size leaves no token for a word.
    """

    def __init__(
        self,
        texts: Iterable[Sequence[str]],
        size: int | None,
        special: Sequence[str] = ("", " "),
        unknown: str = " ",
    ) -> None:
        fewest = len(special) + 1
        if size is not None and size < fewest:
            raise ConfigurationError(f"Expected a vocabulary of at least {fewest} tokens but got {size}")
        counts = Counter(word for text in texts for word in text)
        words = sorted(counts.keys() - set(special), key=lambda word: (-counts[word], word))
        common = [*special, *words][:size]
        self.size = len(common) if size is None else size
        self._tokens = {word: token for token, word in enumerate(common)}
        self._unknown = self._tokens[unknown]

    def tokens(self, words: Sequence[str]) -> list[int]:
        """Return the token of each word."""
        return [self._tokens.get(word, self._unknown) for word in words]

    def padded(self, texts: Iterable[Sequence[str]], length: int) -> Tensor:
        """Return the first tokens of each text, int64, shape (n, T), padded with :data:`PADDING`."""
        rows = [self.tokens(text[:length]) for text in texts]
        return torch.tensor([row + [PADDING] * (length - len(row)) for row in rows], dtype=torch.int64)
