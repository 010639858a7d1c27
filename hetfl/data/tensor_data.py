"""Data sets that are given as tensors or arrays in Python."""

from __future__ import annotations

from typing import Any

from hetfl.data.arrays import ArrayLike, Arrays, ClientData, as_tensor, client_codes
from hetfl.data.inputs import Padding, train_and_test
from hetfl.data.module import FederatedDataModule


class TensorData(FederatedDataModule):
    """Samples given in Python as tensors, NumPy arrays, pandas tables or columns, lists, or a tuple or dict of these.

    Args:
        train_inputs: shape (n, ...): uint8 images (n, C, height, width), floats or token ids. A tuple of arrays, or a
            dict, is several inputs, which a net gets as one argument. With ``pad`` a list of sequences.
        train_targets: shape (n, ...), as the objective takes them; by default integers from 0, shape (n,).
        test_inputs: inputs of the test samples, shape (m, ...).
        test_targets: targets of the test samples, shape (m, ...).
        num_classes: number of classes or other outputs K; None: the largest that the targets need.
        train_clients: the client id of each training sample, a number or a text; None: the partitioner decides.
        test_clients: the client id of each test sample; None: test samples are matched to the training samples.
        pad: the value behind the end of sequences that are shorter than the longest; None: all have the same length.
        pad_mask: whether a net gets ``{"tokens": padded, "mask": mask}``, the mask bool (n, T), True within a sequence.
        num_clients: number of clients N; None: the number of client ids in the data.
        settings: the other arguments of :class:`FederatedDataModule`.
    """

    def __init__(
        self,
        *,
        train_inputs: ArrayLike,
        train_targets: ArrayLike,
        test_inputs: ArrayLike,
        test_targets: ArrayLike,
        num_classes: int | None = None,
        train_clients: ArrayLike | None = None,
        test_clients: ArrayLike | None = None,
        pad: float | None = None,
        pad_mask: bool = False,
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        train, test = train_and_test(train_inputs, test_inputs, Padding(pad, pad_mask))
        self.train_data = ClientData(train, as_tensor(train_targets, "training targets"))
        self.test_data = ClientData(test, as_tensor(test_targets, "test targets"))
        self.train_clients, self.test_clients, self.num_labels = train_clients, test_clients, num_classes

    def load(self) -> Arrays:  # noqa: D102
        train_codes, test_codes, names = client_codes(self.train_clients, self.test_clients)
        return Arrays(self.train_data, self.test_data, self.num_labels, train_codes, test_codes, names)
