"""The data of a federation: which client has which samples, and the samples that Lightning evaluates on."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from hetfl.arguments import checked, keep_arguments
from hetfl.data.arrays import Arrays, ClientData, Samples
from hetfl.data.client_transform import ClientTransform, as_clients_see
from hetfl.data.describing import in_one_line, report_strays
from hetfl.data.left_out import without_classes
from hetfl.data.loaders import EvalBatch, eval_loader, evaluation_batch, round_loader
from hetfl.data.partition import IID, NaturalIds, Partitioner
from hetfl.data.resident import Resident, ServerSamples
from hetfl.data.split import fraction_checked, make_split, with_held_out
from hetfl.data.transform import ImageTransform, Plain, Transform, check_raw
from hetfl.data.usable import check_transform, some, usable_only
from hetfl.errors import ConfigurationError
from hetfl.objectives import Classification, Objective, contract
from hetfl.printable import called
from hetfl.tree import Tree, taken


@checked
class FederatedDataModule(LightningDataModule):
    """A data set, held in memory, and its partition over the clients.

    A data set is a subclass that defines :meth:`load`, and :meth:`default_transform` where the default does not fit.
    The partition depends only on the data and the arguments, ``seed`` included.

    Args:
        num_clients: number of clients N; null: the number of client ids in the data.
        partitioner: the rule that divides the training samples among the clients; null: by the client ids of the data,
            or :class:`~hetfl.data.IID` if the data has no client ids.
        transform: turns raw samples into the batches that nets take; null: the default of the data set.
        client_transform: changes the raw samples or training labels of each client; held-out and global test samples
            are changed like those of the client that they are matched to; null: no change.
        objective: what the targets are; null: the default of the data set, mostly one class per sample.
        val_fraction: fraction of the training data that is held out for validation, before the partition.
        server_fraction: fraction of the remaining training data that is set aside for the server, before the
            partition. Only pieces that declare it read these samples, and no client transform changes them.
        server_to_clients: deal the server's samples to the clients, in equal parts, after the partition.
        client_val_fraction: fraction of its training samples that each client holds out and never trains on. Only
            pieces that declare it read these samples. A client that would keep or hold out fewer than ``min_samples``
            holds none out.
        min_samples: smallest number of training samples that a client may have; batch norm needs 2.
        drop_small_clients: leave out clients with fewer training samples, with a warning that names them; false: such
            clients are an error.
        drop_unusable: leave out samples with missing, infinite or too large values, with a warning; false: such samples
            are an error.
        eval_batch_size: largest number of samples in an evaluation batch; fewer if they have more than 2^24 outputs.
        local_metrics: whether validation also runs over the test samples of the clients.
        left_out_classes: classes of which clients, server and validation have no samples; every other sample stays with
            its client, and the test set keeps all. Clients that become too small are left out. null: no class.
        seed: seed of the held-out samples and of the partition.

    Attributes:
        client_names: the ids of the clients in the data; None before :meth:`setup`, or if the partitioner does not use
            them.
    """

    def __init__(
        self,
        *,
        num_clients: int | None = 100,
        partitioner: Partitioner | None = None,
        transform: Transform | None = None,
        client_transform: ClientTransform | None = None,
        objective: Objective | None = None,
        val_fraction: float = 0.1,
        server_fraction: float = 0.0,
        server_to_clients: bool = False,
        client_val_fraction: float = 0.0,
        min_samples: int = 2,
        drop_small_clients: bool = False,
        drop_unusable: bool = False,
        eval_batch_size: int = 1000,
        local_metrics: bool = True,
        left_out_classes: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("min_samples", min_samples), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise ConfigurationError(f"Expected {name} of at least 1 but got {value}")
        self.partitioner, self.client_transform = partitioner, client_transform
        self.val_fraction, self.min_samples, self.eval_batch_size = val_fraction, min_samples, eval_batch_size
        self.server_fraction, self.server_to_clients = server_fraction, server_to_clients
        self.client_val_fraction = fraction_checked(client_val_fraction, "client_val_fraction")
        self.drop_small_clients, self.drop_unusable = drop_small_clients, drop_unusable
        self.local_metrics, self.left_out_classes = local_metrics, left_out_classes or []
        self.seed, self._num_clients, self._transform, self._objective = seed, num_clients, transform, objective
        self._resident: Resident | None = None
        self.client_names: tuple[str | int, ...] | None = None

    def __init_subclass__(cls, **settings: object) -> None:
        """Let objects of a subclass keep the arguments that they were made with."""
        super().__init_subclass__(**settings)
        keep_arguments(cls)

    @abstractmethod
    def load(self) -> Arrays:
        """Return the whole data set; called once.

        Raises:
            ConfigurationError: the data is missing, or its format is not as expected.
        """

    def default_transform(self, arrays: Arrays) -> Transform:
        """Return the transform that is used when none is given: it scales uint8 images to [-1, 1], and nothing else."""
        inputs = arrays.train.inputs
        if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.dim() == 4:
            half = (0.5,) * inputs.shape[1]
            return ImageTransform(mean=half, std=half)
        return Plain()

    def setup(self, stage: str | None = None) -> None:
        """Load the data and divide it among the clients; every later call does nothing.

        Raises:
            ConfigurationError: the data is missing, or the requested partition is impossible.
        """
        if self._resident is not None:
            return
        arrays = self.load()
        self._objective = self._objective or arrays.objective or Classification()
        arrays = self._usable(arrays.meeting(self._objective))
        natural = NaturalIds() if arrays.train_clients is not None else IID()
        split = make_split(
            arrays,
            self.partitioner or natural,
            num_clients=self._num_clients,
            val_fraction=self.val_fraction,
            min_samples=self.min_samples,
            seed=self.seed,
            drop_small_clients=self.drop_small_clients,
            server_fraction=self.server_fraction,
            server_to_clients=self.server_to_clients,
        )
        self._transform = self._transform or self.default_transform(arrays)
        check_raw(arrays, self._transform)
        owner = None
        if self.client_transform is not None:
            arrays, owner = as_clients_see(arrays, split, self.client_transform, self._transform.unit, self.seed)
            usable_only(arrays, drop=False, cause=f" as {type(self.client_transform).__name__} changes them")
        check_transform(self._transform, arrays.train.inputs)
        outputs = math.prod(self.objective.output_shape(arrays.train.targets[:1], arrays.outputs))
        self.eval_batch_size = evaluation_batch(self.eval_batch_size, outputs)
        split = with_held_out(split, self.client_val_fraction, self.min_samples, self.seed)
        self._resident, self.client_names = Resident.of(arrays, split, owner), split.names
        report_strays(type(self).__name__, split, self.min_samples)
        if self.left_out_classes:
            self._leave_out()

    def _usable(self, arrays: Arrays) -> Arrays:
        """Return a data set that can be trained on.

        Raises:
            ConfigurationError: the data has only one class, or unusable samples without ``drop_unusable``.
        """
        if arrays.outputs < 2 and self.objective.single_labels(arrays.train.targets) is not None:
            raise ConfigurationError(
                f"Expected at least 2 classes in the data of {type(self).__name__} but got {arrays.num_classes}"
            )
        arrays, dropped = usable_only(arrays, self.drop_unusable)
        if dropped:
            rank_zero_warn(f"{type(self).__name__}: {dropped} samples with unusable values are left out")
        return arrays

    def _leave_out(self) -> None:
        """Leave classes out, and warn of clients that are left out with them."""
        before, names = self.resident, self.client_names
        self._resident, kept = without_classes(before, self.left_out_classes, self.objective, self.min_samples)
        self.client_names = None if names is None else tuple(names[client] for client in kept.tolist())
        if few := sorted(set(range(len(before.train))) - set(kept.tolist())):
            rank_zero_warn(
                f"{type(self).__name__}: {some('client', [called(client, names) for client in few])} with fewer than "
                f"{self.min_samples} training samples (min_samples) of other classes are left out"
            )

    @property
    def resident(self) -> Resident:
        """The samples in the order of the clients; available after :meth:`setup`."""
        if self._resident is None:
            raise RuntimeError(f"Expected {type(self).__name__}.setup() before its data is used but it was not called")
        return self._resident

    @property
    def transform(self) -> Transform:
        """Turns raw samples into float batches."""
        if self._transform is None:
            raise RuntimeError(f"Expected {type(self).__name__}.setup() before its transform is used")
        return self._transform

    @property
    def objective(self) -> Objective:
        """What the targets are."""
        if self._objective is None:
            raise RuntimeError(f"Expected {type(self).__name__}.setup() before its objective is used")
        return self._objective

    def meet(self, objective: Objective) -> Objective:
        """Return an objective that replaces the one of the data, after a check that it takes the same targets.

        Raises:
            ConfigurationError: the objective needs targets of another type or shape.
        """
        for data, where in ((self.resident.validation, "validation"), (self.resident.all_test, "test")):
            targets = contract.prepared_targets(objective, data.targets, where)
            if targets.dtype != data.targets.dtype or targets.shape != data.targets.shape:
                raise ConfigurationError(
                    f"Expected an objective for the targets of {type(self.objective).__name__}, which the data has, "
                    f"but got {type(objective).__name__}: set data.objective, too"
                )
            if len(targets):
                contract.check_targets(objective, targets, self.num_classes, where)
        return objective

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.resident.train)

    @property
    def num_classes(self) -> int:
        """Number K of classes, or of other outputs of a net."""
        return self.resident.labels.shape[1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of training samples per client."""
        return tuple(len(data) for data in self.resident.train)

    @property
    def unassigned(self) -> int:
        """Number of training samples neither held out nor given to a client (:class:`~hetfl.data.LabelShards`)."""
        return self.resident.unassigned

    @property
    def server_data(self) -> ServerSamples | None:
        """The samples of the server; None if ``server_fraction`` is 0."""
        return ServerSamples(self.resident.server, self.transform) if len(self.resident.server) else None

    def client_data(self, client: int, split: Samples = "train") -> ClientData:
        """Return the samples of a client: views of the resident tensors, the same objects at every call."""
        return self.resident.of_client(client, split)

    def first(self, count: int) -> tuple[Tree, Tensor]:
        """Return the first samples of client 0: inputs after the evaluation transform, and targets."""
        data = self.client_data(0)
        return self.transform.eval(taken(data.inputs, slice(count))), data.targets[:count]

    def labels(self, client: int) -> Tensor:
        """Return which labels occur in the training targets of a client, bool (K,); all True without labels."""
        return self.resident.labels[client]

    def train_dataloader(self) -> DataLoader[int]:
        """Return a loader with one item, which stands for the round."""
        return round_loader()

    def val_dataloader(self) -> list[DataLoader[EvalBatch]]:
        """Return the held-out samples and, with ``local_metrics``, the test samples that belong to a client.

        Held-out samples have no owner. Under a client transform their owner is the client whose transform they got.

        Raises:
            ConfigurationError: no samples are held out.
        """
        if not len(self.resident.validation):
            raise ConfigurationError(
                f"Expected val_fraction > 0 for validation but got {self.val_fraction}: models are chosen on samples "
                "held out from the training data, never on the test set (without validation: limit_val_batches=0)"
            )
        loaders = [eval_loader(self.resident.validation, self.eval_batch_size, self.resident.validation_owner)]
        owner = self.resident.test_owner
        owned = int((owner >= 0).sum())  # samples without an owner come last
        if self.local_metrics and owned:
            test = self.resident.all_test
            client_samples = ClientData(taken(test.inputs, slice(owned)), test.targets[:owned])
            loaders.append(eval_loader(client_samples, self.eval_batch_size, owner[:owned]))
        return loaders

    def test_dataloader(self) -> list[DataLoader[EvalBatch]]:
        """Return the whole test set."""
        return [eval_loader(self.resident.all_test, self.eval_batch_size, self.resident.test_owner)]

    def predict_dataloader(self) -> list[DataLoader[EvalBatch]]:
        """Return the whole test set."""
        return self.test_dataloader()

    def summary(self) -> str:
        """Return one line: the data set, its partition, and clients without test samples or with one class."""
        return in_one_line(type(self).__name__, self.objective, self.resident, self.client_names, self.client_transform)
