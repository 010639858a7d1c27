"""The base class of texts that are cut into rows, of which each client has some."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.data.arrays import Arrays
from hetfl.data.module import FederatedDataModule
from hetfl.data.windows import Targets, language_objective, windows
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


class Text(NamedTuple):
    """A text as tokens.

    Attributes:
        train: the training text, int64, shape (L,).
        test: the test text.
        size: number of tokens V of the vocabulary; all tokens are in [0, V).
    """

    train: Tensor
    test: Tensor
    size: int


class TokenRows(FederatedDataModule):
    """A text, cut into rows of equal length, which are cut into samples of T tokens; the objective is a language model.

    As in HeteroFL's experiment, a client has whole rows, drawn at random. A partitioner without client ids, such as
    :class:`~hetfl.data.IID`, divides the samples instead.

    With ``targets: same`` the default objective masks 15 % of the tokens and counts all tokens, as in HeteroFL's code.
    The token in their place is V, the number of tokens: such a net has ``vocab_size`` V + 1 and ``num_classes`` V.

    Args:
        length: number of tokens T of a sample.
        targets: ``next``: the following token at each position; ``same``: the token itself, for masked tokens.
        rows: rows of the training text, at least one for each client.
        test_rows: rows of the test text.
        num_clients: number of clients N.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        length: int = 64,
        targets: Targets = "next",
        rows: int = 100,
        test_rows: int = 10,
        num_clients: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        for name, value in (("length", length), ("test_rows", test_rows)):
            if value < 1:
                raise ConfigurationError(f"Expected {name} of at least 1 but got {value}")
        if not 1 <= num_clients <= rows:
            raise ConfigurationError(
                f"Expected at least one client, and rows for each client, but got {num_clients} clients and {rows} rows"
            )
        self.length, self.rows, self.test_rows, self.clients = length, rows, test_rows, num_clients
        self.targets = choice("targets", targets, Targets)

    @abstractmethod
    def text(self) -> Text:
        """Return the whole text.

        Raises:
            ConfigurationError: the text is missing.
        """

    def load(self) -> Arrays:  # noqa: D102
        text = self.text()
        for name, tokens, rows in (("training", text.train, self.rows), ("test", text.test, self.test_rows)):
            needed = rows * (self.length + (self.targets == "next"))
            if len(tokens) < needed:
                raise ConfigurationError(
                    f"Expected at least {needed} tokens of {name} text, a sample of length {self.length} in each of "
                    f"{rows} rows, but got {len(tokens)}"
                )
        train, row = windows(text.train, self.length, self.targets, self.rows)
        test, _ = windows(text.test, self.length, self.targets, self.test_rows)
        objective = language_objective(self.targets, text.size)
        return Arrays(train, test, text.size, train_clients=self._owners()[row], objective=objective)

    def _owners(self) -> Tensor:
        """Return the client of each row, int64, shape (rows,)."""
        owner, order = torch.empty(self.rows, dtype=torch.int64), generator(self.seed, "rows")
        for client, rows in enumerate(torch.randperm(self.rows, generator=order).tensor_split(self.clients)):
            owner[rows] = client
        return owner
