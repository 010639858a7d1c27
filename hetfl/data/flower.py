"""An adapter for partitioners of the package flwr-datasets."""

from __future__ import annotations

from copy import deepcopy
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from hetfl.data.partition import Partitioner
from hetfl.errors import ConfigurationError


class FlowerRule(Protocol):
    """The interface of a partitioner of flwr-datasets."""

    dataset: Any
    """The table that is divided, a ``datasets.Dataset``; set once."""

    @property
    def num_partitions(self) -> Any:
        """Number of partitions."""

    def load_partition(self, partition_id: int) -> Any:
        """Return the rows of one partition, a ``datasets.Dataset``."""


class FlowerPartitioner(Partitioner):
    """Divides samples by a partitioner of flwr-datasets; that package must be installed.

    The partitioner gets a table with a column ``label``; set its ``partition_by`` argument, if it has one, to
    ``label``. The samples are shuffled with the seed of the data, as Flower's ``FederatedDataset`` shuffles them.
    The random choices of the partitioner depend only on its ``seed`` argument, not on the seed of the data.

    Args:
        partitioner: a partitioner without a data set, such as ``flwr_datasets.partitioner.DirichletPartitioner``; its
            number of partitions must be the number of clients.
    """

    def __init__(self, partitioner: FlowerRule) -> None:
        self.partitioner = partitioner

    def partition(self, labels: Tensor, num_clients: int, generator: torch.Generator) -> list[Tensor]:
        """Return per client the positions of its samples, in the order of the partitioner.

        Raises:
            ConfigurationError: the package is missing, the partitioner fails, the number of partitions is not the
                number of clients, or the partitioner divides columns instead of samples.
        """
        order = torch.randperm(len(labels), generator=generator)
        table = _table({"label": labels[order].tolist(), "position": order.tolist()})
        # A partitioner accepts one data set only, but a data module may be set up again.
        rule, name = deepcopy(self.partitioner), type(self.partitioner).__name__
        try:
            rule.dataset = table
            count = int(rule.num_partitions)
            parts = [rule.load_partition(number) for number in range(count)] if count == num_clients else []
        except Exception as error:  # an external rule may raise anything; the cause is its settings or the data
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigurationError(f"Expected a partition from {name} (flwr-datasets) but got {reason}") from error
        if count != num_clients:
            raise ConfigurationError(
                f"Expected {num_clients} partitions, one per client (num_clients), from {name} but got {count}"
            )
        if any("position" not in part.column_names for part in parts):
            raise ConfigurationError(
                f"Expected a rule that divides samples but got {name}, which divides the columns of a table"
            )
        return [torch.tensor(list(part["position"]), dtype=torch.int64) for part in parts]


def _table(columns: dict[str, list[int]]) -> Any:
    # Imported here because the package is optional.
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ConfigurationError(
            "Expected the package flwr-datasets (FlowerPartitioner) but it is not installed: pip install flwr-datasets"
        ) from error
    return datasets.Dataset.from_dict(columns)
