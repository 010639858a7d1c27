"""The part of the module that keeps the nets: the global models, and a resident net of every level."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, cast

from lightning import LightningModule
from torch import Tensor, nn

from hetfl.clustering import Clustering
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.federation.checksum import checksum
from hetfl.federation.clients import Clients
from hetfl.federation.levels import LevelSet
from hetfl.federation.statistics import StaticStatisticsStore
from hetfl.local import Executor, LocalProblem, LocalTask, LocalTraining
from hetfl.local.executor import Bench
from hetfl.local.resident import ResidentNet
from hetfl.submodel import parameters_of, state_of
from hetfl.types import Index


class HostingModule(LightningModule):
    """Gives executors and evaluations the nets that they work on.

    Subclasses set the attributes below and say what a sub-model is (``index``). ``net`` is the global model, of the
    first cluster if there are several; ``other_nets`` are those of the others.
    """

    net: nn.Module
    other_nets: nn.ModuleList
    clustering: Clustering
    levels: LevelSet
    local: LocalTraining
    executor: Executor
    clients: Clients
    statistics: StaticStatisticsStore
    version: int
    bench: Bench | None = None
    _edits: int = 0  # changes that torch did not count
    _noticed: tuple[int, int] | None = None  # the mark, and the checksum of the values that it was last seen with

    def index(self, level: str, round: int) -> Index:
        """Return what a level's sub-model holds of the global model."""
        raise NotImplementedError

    @property
    def last_round(self) -> int:
        """The round that the present global model came out of; 0 before the first."""
        return max(self.version - 1, 0)

    @property
    def has_data(self) -> bool:
        """Whether a trainer with a federated data module is at work on this module."""
        return isinstance(getattr(self._trainer, "datamodule", None), FederatedDataModule)

    @property
    def data(self) -> FederatedDataModule:
        """The trainer's data module.

        Raises:
            ConfigurationError: it is not a federated one.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, FederatedDataModule):
            raise ConfigurationError(
                f"Expected a hetfl.FederatedDataModule as datamodule but got {type(data).__name__}"
            )
        return data

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The global model's parameters and float buffers by name; first used once the module is on its device."""
        return state_of(self.net)

    @cached_property
    def cluster_tensors(self) -> list[dict[str, Tensor]]:
        """The same of every cluster's model, the first one's being :attr:`tensors`."""
        others = list(self.other_nets)
        for net in others:
            share(net, {name: self.tensors[name] for name in self.shared})
        return [self.tensors, *map(state_of, others)]

    @cached_property
    def shared(self) -> frozenset[str]:
        """Names of the tensors that are one for all clusters."""
        return frozenset(n for n in state_of(self.net) for p in self.clustering.shared if fnmatchcase(n, p))

    @cached_property
    def parameter_names(self) -> frozenset[str]:
        """Names of the tensors that are trained and compressed; buffers travel exactly."""
        return frozenset(parameters_of(self.net))

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Names of parameters that nobody trains."""
        return frozenset(name for name, parameter in self.net.named_parameters() if not parameter.requires_grad)

    @property
    def weights_mark(self) -> int:
        """A number that grows whenever the global models' values change: torch's own count of in-place changes.

        What is changed through ``.data`` torch does not count; :meth:`notice_edits` does.
        """
        return sum(tensor._version for tensors in self.cluster_tensors for tensor in tensors.values()) + self._edits

    def notice_edits(self) -> None:
        """Count a change of values that came without one of torch's count: through ``.data``, or from NumPy."""
        content = checksum(tensor for tensors in self.cluster_tensors for tensor in tensors.values())
        if self._noticed is not None and self._noticed[0] == self.weights_mark and self._noticed[1] != content:
            self._edits += 1
        self._noticed = (self.weights_mark, content)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take values; statistics that came with them in a checkpoint are theirs, and not those of later changes."""
        result = super().load_state_dict(*args, **kwargs)
        if not self.has_data:  # with a trainer's data the module goes to its device first
            self.statistics.belong_to(self.weights_mark)
            self.notice_edits()
            self.close_bench()
        return result

    def open_bench(self) -> None:
        """Make this process's resident nets, once the module is on its device, and hand them to the executor."""
        if self.bench is None:
            self.bench = Bench(cast(LocalProblem, self), self.data, self.tensors, self.cluster_tensors[1:])
            self.executor.setup(self.bench)
            self.notice_edits()
        self.statistics.belong_to(self.weights_mark)

    def build(self, level: str) -> nn.Module:
        """Return a new net of a level on the module's device and in its dtype."""
        return self.levels.build(level).to(device=self.device, dtype=next(self.net.parameters()).dtype)

    def submodel(self, level: str, cluster: int = 0) -> nn.Module:
        """Return a level's net with the present global model's values and, if known, its statistics.

        During a run it is the resident net, which the next client takes over; afterwards it is the caller's.

        Args:
            level: the level's name.
            cluster: whose global model.
        """
        if self.bench is None:
            self.notice_edits()
            resident = ResidentNet(self.build(level), self.local.optimizer)
            key = (cluster, self.last_round, self.weights_mark)
            resident.anchor(self.cluster_tensors[cluster], self.index(level, self.last_round), key)
        else:
            task = LocalTask(-1, level, self.last_round, self.weights_mark, 0.0, cluster=cluster)
            resident = self.bench.resident(task)
        resident.start()
        if self.statistics.belong_to(self.weights_mark):
            self.statistics.load_into(level, resident.net, cluster)
        return resident.net.eval()

    def precision_context(self) -> AbstractContextManager[object]:
        """Return the trainer's precision (autocast, default dtype) as a context."""
        return self.trainer.precision_plugin.forward_context()

    def teardown(self, stage: str) -> None:
        """End the executor's processes, and forget what another device or data set would change."""
        self.close_bench()

    def close_bench(self) -> None:
        """End the executor's processes, and forget the nets and what was read off them."""
        self.executor.close()
        self.bench = None
        for name in [name for name in self.__dict__ if isinstance(getattr(type(self), name, None), cached_property)]:
            del self.__dict__[name]


def share(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace a net's parameters and buffers of some names by others' tensors."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = net.get_submodule(owner)
        if isinstance(tensor, nn.Parameter):
            module._parameters[leaf] = tensor
        else:
            module._buffers[leaf] = tensor
