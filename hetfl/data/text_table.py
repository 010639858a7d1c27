"""Texts with a class in CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetfl.data.arrays import Arrays, ClientData, class_codes, client_codes
from hetfl.data.csv_table import Columns, cells, read_table
from hetfl.data.module import FederatedDataModule
from hetfl.data.split import hold_out
from hetfl.data.words import Vocabulary, words_of
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator

if TYPE_CHECKING:
    import pandas as pd


class TextTable(FederatedDataModule):
    """One text per row, its class, and optionally a client id.

    A text becomes the tokens of its first T words, int64, shape (n, T). Token 0 pads short texts; token 1 stands for
    words outside the vocabulary. The vocabulary is the most frequent words of all training texts, so it reveals words
    of each client to the others. In sorted order the classes become 0 to K-1.

    Args:
        path: the CSV file with a header line.
        text: the column with the text.
        target: the column with the class.
        client: the column with the client id; null: the partitioner decides.
        test_path: a second file with the test rows; null: a fraction of the rows of ``path``.
        test_fraction: fraction of the rows that is the test set without ``test_path``; ``seed`` does not change it.
        vocabulary: number of tokens, tokens 0 and 1 included: the ``vocab_size`` of a net.
        length: number of tokens T of a text; longer texts are truncated.
        separator: the character between cells, such as ";" or a tab.
        encoding: encoding of the text, such as "latin-1".
        num_clients: number of clients N; null: the number of client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        path: str,
        text: str,
        target: str,
        client: str | None = None,
        test_path: str | None = None,
        test_fraction: float = 0.2,
        vocabulary: int = 10000,
        length: int = 64,
        separator: str = ",",
        encoding: str = "utf-8",
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        if test_path is None and not 0 < test_fraction < 1:
            raise ConfigurationError(f"Expected test_fraction in (0, 1), or test_path, but got {test_fraction}")
        if text in (target, client):
            raise ConfigurationError(f"Expected a text column other than target and client but got {text!r} twice")
        if length < 1:
            raise ConfigurationError(f"Expected a length of at least 1 token but got {length}")
        self.text, self.target, self.columns = text, target, Columns(target, client, [], [text])
        self.path, self.test_path, self.test_fraction = path, test_path, test_fraction
        self.vocabulary, self.length, self.separator, self.encoding = vocabulary, length, separator, encoding

    def load(self) -> Arrays:  # noqa: D102
        train = self._read(self.path)
        if self.test_path is None:
            kept, held_out = hold_out(len(train), self.test_fraction, generator(0, "test"), "test_fraction")
            train, test = train.iloc[kept.numpy()], train.iloc[held_out.numpy()]
        else:
            test = self._read(self.test_path)
        texts = [[words_of(text) for text in table[self.text]] for table in (train, test)]
        vocabulary = Vocabulary(texts[0], self.vocabulary)

        def column(name: str) -> list[list[Any]]:
            return cells(train[name], test[name])

        labels, classes = class_codes(*column(self.target))
        ids = [None, None] if self.columns.client is None else column(self.columns.client)
        train_codes, test_codes, names = client_codes(*ids)
        tokens = [vocabulary.padded(each, self.length) for each in texts]
        train_data, test_data = (ClientData(x, y) for x, y in zip(tokens, labels, strict=True))
        return Arrays(train_data, test_data, len(classes), train_codes, test_codes, names)

    def _read(self, path: str) -> pd.DataFrame:
        """Return the rows of a file.

        Raises:
            ConfigurationError: a column is missing, or a cell in it is empty.
        """
        table = read_table(path, self.columns, self.separator, self.encoding, ".")
        if missing := [name for name in self.columns.texts if name not in table.columns]:
            raise ConfigurationError(f"Expected columns {missing} in {path} but it has {list(table.columns)}")
        empty = (table[self.columns.texts] == "").any(axis=1)
        if empty.any():
            row = int(empty.to_numpy().argmax()) + 1
            raise ConfigurationError(f"Expected a text and a class in every row of {path} but row {row} lacks one")
        return table
