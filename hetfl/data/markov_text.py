"""A text of a Markov chain, whose best perplexity is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hetfl.data.token_rows import Text, TokenRows
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator


class MarkovText(TokenRows):
    r"""A generated text in which each token has S possible successors of equal probability.

    .. math:: x_{t+1} = (S x_t + u_t) \bmod V, \qquad u_t \text{ uniform in } \{0, \dots, S - 1\}

    All V tokens are equally frequent, so a model that ignores the preceding token has perplexity V. The best model of
    the next token has perplexity S. The text does not depend on the seed.

    Args:
        vocabulary: number of tokens V.
        successors: number of successors S of a token, below V.
        words: number of tokens of the training text; the test text has a fifth of it.
        length: number of tokens T of a sample.
        rows: rows of the training text, at least one for each client.
        num_clients: number of clients N.
        settings: the other arguments of :class:`~hetfl.data.token_rows.TokenRows`.

    Raises:
        ConfigurationError: the successors are not in 1..V-1.
    """

    def __init__(
        self,
        *,
        vocabulary: int = 32,
        successors: int = 4,
        words: int = 20_000,
        length: int = 16,
        rows: int = 20,
        num_clients: int = 10,
        **settings: Any,
    ) -> None:
        super().__init__(length=length, rows=rows, num_clients=num_clients, **settings)
        if not 1 <= successors < vocabulary:
            raise ConfigurationError(
                f"Expected successors in 1..{vocabulary - 1}, below the vocabulary, but got {successors}"
            )
        self.vocabulary, self.successors, self.words = vocabulary, successors, words

    def text(self) -> Text:  # noqa: D102
        train, test = self._drawn(self.words, "training"), self._drawn(self.words // 5, "test")
        return Text(train, test, self.vocabulary)

    def _drawn(self, count: int, purpose: str) -> Tensor:
        random = generator(0, "markov text", purpose)
        tokens = [int(torch.randint(self.vocabulary, (), generator=random))]
        for choice in torch.randint(self.successors, (count - 1,), generator=random).tolist():
            tokens.append((self.successors * tokens[-1] + choice) % self.vocabulary)
        return torch.tensor(tokens, dtype=torch.int64)
