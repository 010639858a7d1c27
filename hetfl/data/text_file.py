"""Plain text for language modelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.data.arrays import Arrays, ClientData
from hetfl.data.module import FederatedDataModule
from hetfl.data.windows import Targets, language_objective, windows
from hetfl.data.words import UNKNOWN, Vocabulary, text_in, words_of
from hetfl.errors import ConfigurationError
from hetfl.objectives import LanguageModelling


class TextFile(FederatedDataModule):
    """A text file, cut into samples of T tokens; the objective is language modelling.

    The vocabulary is the most frequent words of the training text. Words outside it are token 1, and are ignored as
    targets. The size of the vocabulary is the ``num_classes`` of a net. It is also its ``vocab_size``, which is one
    larger for masked language modelling. With ``by_place`` client k has the k-th part of the text, as in the experiment
    of HeteroFL on WikiText-2; otherwise the partitioner decides. With ``targets: same`` the default objective masks 15
    % of the tokens and counts all of them; the token in their place is the number of tokens.

    Args:
        path: the training text.
        test_path: the test text.
        vocabulary: number of tokens, tokens 0 (padding) and 1 (other words) included.
        length: number of tokens T of a sample.
        targets: ``next``: the following token at each position; ``same``: the token itself, for masked tokens.
        by_place: whether each client has a contiguous part of the text.
        encoding: encoding of the text, such as "latin-1".
        num_clients: number of clients N.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        path: str,
        test_path: str,
        vocabulary: int = 10000,
        length: int = 64,
        targets: Targets = "next",
        by_place: bool = True,
        encoding: str = "utf-8",
        num_clients: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        if length < 1:
            raise ConfigurationError(f"Expected a length of at least 1 token but got {length}")
        self.path, self.test_path, self.encoding = path, test_path, encoding
        self.vocabulary, self.length, self.targets = vocabulary, length, choice("targets", targets, Targets)
        self.by_place, self.clients = by_place, num_clients

    def load(self) -> Arrays:  # noqa: D102
        files = [(self._words(path), path) for path in (self.path, self.test_path)]
        vocabulary = Vocabulary([files[0][0]], self.vocabulary)
        train, test = (self._samples(vocabulary, words, path) for words, path in files)
        return Arrays(
            train,
            test,
            self.vocabulary,
            train_clients=self._owners(len(train)),
            test_clients=self._owners(len(test)),
            objective=language_objective(self.targets, self.vocabulary),
        )

    def _words(self, path: str) -> list[str]:
        return words_of(text_in(Path(path), self.encoding))

    def _samples(self, vocabulary: Vocabulary, words: list[str], path: str) -> ClientData:
        ahead = 1 if self.targets == "next" else 0
        tokens = torch.tensor(vocabulary.tokens(words), dtype=torch.int64)
        data, _ = windows(tokens, self.length, self.targets)
        if len(data) < self.clients:
            raise ConfigurationError(
                f"Expected at least {self.clients * self.length + ahead} words in {path}, {self.length} for each of "
                f"{self.clients} clients, but got {len(tokens)}"
            )
        objective = self._objective if isinstance(self._objective, LanguageModelling) else LanguageModelling()
        return ClientData(data.inputs, data.targets.masked_fill(data.targets == UNKNOWN, objective.ignore))

    def _owners(self, count: int) -> Tensor | None:
        """Return the client of each sample, in contiguous equal parts; None if the partitioner decides."""
        return None if not self.by_place else torch.arange(count) * self.clients // count
