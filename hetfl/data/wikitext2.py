"""WikiText-2: articles of Wikipedia for language modelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetfl.data.token_rows import Text, TokenRows
from hetfl.data.words import Vocabulary, text_in
from hetfl.errors import ConfigurationError

END, UNKNOWN = "<eos>", "<unk>"
"""The word at the end of each line, and the word of the files in place of rare words."""


class WikiText2(TokenRows):
    """Two million words of good and featured articles (Merity et al., Pointer Sentinel Mixture Models, ICLR 2017).

    The words are those of the files, which spaces separate, and ``<eos>`` at the end of each line: 33,278 different
    words, of which ``<unk>`` is token 0. The number of words is the ``num_classes`` of a net. Nothing is downloaded.

    Args:
        root: the folder of the word-level files ("wikitext-2-v1").
        train: name of the training file.
        test: name of the test file.
        vocabulary: number of words V: the most frequent ones, the others become ``<unk>``; null: all words of the
            training text.
        length: number of tokens T of a sample.
        settings: the other arguments of :class:`~hetfl.data.token_rows.TokenRows`.
    """

    def __init__(
        self,
        *,
        root: str = "data/wikitext-2",
        train: str = "wiki.train.tokens",
        test: str = "wiki.test.tokens",
        vocabulary: int | None = None,
        length: int = 64,
        **settings: Any,
    ) -> None:
        super().__init__(length=length, **settings)
        self.root, self.train, self.test, self.vocabulary = root, train, test, vocabulary

    def text(self) -> Text:  # noqa: D102
        train, test = self._words(self.train), self._words(self.test)
        vocabulary = Vocabulary([train], self.vocabulary, special=(UNKNOWN,), unknown=UNKNOWN)
        return Text(_tokens(vocabulary, train), _tokens(vocabulary, test), vocabulary.size)

    def _words(self, name: str) -> list[str]:
        """Return the words of a file, with ``<eos>`` at the end of each line."""
        path = Path(self.root) / name
        if not path.is_file():
            raise ConfigurationError(
                f"Expected the word-level files of WikiText-2 in {Path(self.root).resolve()} but {name} is missing: "
                "set root to their folder, and train and test to their names"
            )
        lines = text_in(path, "utf-8").removesuffix("\n").split("\n")
        return [word for line in lines for word in (*line.split(), END)]


def _tokens(vocabulary: Vocabulary, words: list[str]) -> Tensor:
    return torch.tensor(vocabulary.tokens(words), dtype=torch.int64)
