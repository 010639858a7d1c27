"""The user's own tensors."""

from __future__ import annotations

from typing import Any

from hetfl.data.arrays import ArrayLike, Arrays, ClientData, as_tensor, client_codes
from hetfl.data.module import FederatedDataModule


class TensorData(FederatedDataModule):
    """Samples given in Python: tensors, NumPy arrays, tables and columns of pandas, or lists.

    Args:
        train_inputs: shape (n, ...), uint8 images (n, C, height, width) or floats.
        train_targets: shape (n, ...), as the objective takes them; by default whole numbers from 0, shape (n,).
        test_inputs: shape (m, ...).
        test_targets: shape (m, ...).
        num_classes: number of classes or other outputs K; None: as many as the targets need.
        train_clients: per training sample the id of its client, a number or a text; None: the partitioner decides.
        test_clients: per test sample the id of its client; None: matched to the training samples.
        num_clients: number of clients N; None: as many as there are client ids in the data.
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
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        self.train_data = _samples(train_inputs, train_targets, "training")
        self.test_data = _samples(test_inputs, test_targets, "test")
        self.train_clients, self.test_clients, self.num_labels = train_clients, test_clients, num_classes

    def load(self) -> Arrays:  # noqa: D102
        train_codes, test_codes, names = client_codes(self.train_clients, self.test_clients)
        return Arrays(self.train_data, self.test_data, self.num_labels, train_codes, test_codes, names)


def _samples(inputs: ArrayLike, targets: ArrayLike, where: str) -> ClientData:
    return ClientData(as_tensor(inputs, f"{where} inputs"), as_tensor(targets, f"{where} targets"))
