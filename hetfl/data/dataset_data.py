"""Map-style data sets."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from hetfl.data.arrays import ArrayLike, Arrays, ClientData, as_tensor, client_codes
from hetfl.data.inputs import Padding, as_inputs, pixels_or_numbers, stack_both, stack_targets
from hetfl.data.module import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.tree import Tree


class DatasetData(FederatedDataModule):
    """Two data sets with ``len()`` and items (input, target), such as lists of pairs; read once into memory.

    An input is a tensor, an array, a number, a list of numbers or a PIL image, or a tuple or dict of arrays, which a
    net gets as one argument. All inputs have the same structure and shape; with ``pad`` lengths may differ. A random
    transform inside the data set is drawn only once: augment with ``transform`` instead.

    Args:
        train: the training samples.
        test: the test samples.
        num_classes: number of classes K; None: the largest class that occurs, plus 1.
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
        train: Dataset[Any],
        test: Dataset[Any],
        num_classes: int | None = None,
        train_clients: ArrayLike | None = None,
        test_clients: ArrayLike | None = None,
        pad: float | None = None,
        pad_mask: bool = False,
        num_clients: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_clients=num_clients, **settings)
        self.train, self.test, self.num_labels = train, test, num_classes
        self.train_clients, self.test_clients, self.padding = train_clients, test_clients, Padding(pad, pad_mask)

    def load(self) -> Arrays:  # noqa: D102
        train_inputs, train_targets = _items(self.train, "training")
        test_inputs, test_targets = _items(self.test, "test")
        trees = stack_both(train_inputs, test_inputs, self.padding)
        train = ClientData(trees[0], stack_targets(train_targets, "training"))
        test = ClientData(trees[1], stack_targets(test_targets, "test"))
        train_codes, test_codes, names = client_codes(self.train_clients, self.test_clients)
        return Arrays(train, test, self.num_labels, train_codes, test_codes, names)


def _items(dataset: Dataset[Any], where: str) -> tuple[list[Tree], list[Tensor]]:
    """Return inputs and targets of all items of a data set."""
    inputs: list[Tree] = []
    targets: list[Tensor] = []
    for position in range(_length(dataset, where)):
        item = dataset[position]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ConfigurationError(
                f"Expected {where} items (input, target) but got {type(item).__name__} at position {position}"
            )
        inputs.append(as_inputs(item[0], f"the input at {where} position {position}", pixels_or_numbers))
        targets.append(as_tensor(item[1], f"the target at {where} position {position}"))
    return inputs, targets


def _length(dataset: Dataset[Any], where: str) -> int:
    length = len(dataset) if hasattr(dataset, "__len__") else 0
    if not length:
        raise ConfigurationError(f"Expected a {where} data set with a length above 0 but got {type(dataset).__name__}")
    return length
