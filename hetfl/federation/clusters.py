"""The part of the module that keeps several global models: who is asked about them, and how they come to be."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hetfl import wire
from hetfl.clustering import NewModel
from hetfl.errors import ConfigurationError
from hetfl.federation.forecast import Forecast
from hetfl.federation.hosting import HostingModule
from hetfl.federation.ledger import Ledger
from hetfl.federation.probing import RoundProbe
from hetfl.fleet import LevelAssignment
from hetfl.fleet.numbers import IntArray
from hetfl.local import LocalTask
from hetfl.run_folder import RunFolder
from hetfl.seeding import generator
from hetfl.submodel import index_layout, parameters_of

CLUSTER_COLUMNS = ("round", "client", "cluster")
"""Of ``clusters.csv``: a row for every time that a client's cluster changed."""


class ClusteringModule(HostingModule):
    """Asks clients about several models, and makes new ones. Subclasses provide the attributes below."""

    assignment: LevelAssignment
    ledger: Ledger
    forecast: Forecast
    flops: Mapping[str, tuple[float, float]]
    seed: int

    def probe_of(self, there: IntArray, round: int) -> RoundProbe:
        """Return what may be asked of the present models of clients that are within reach."""
        mark, cluster_of = self.weights_mark, self.clustering.cluster_of
        everyone = len(there) == self.data.num_clients
        positions = self.assignment.positions(round)

        def seconds(clients: Sequence[int]) -> list[float]:
            ids_S = np.asarray(clients, np.int64)
            predicted_S = self.forecast.seconds(ids_S, positions[ids_S], round, self.ledger.up_share)
            return [float(each) for each in predicted_S]

        def task(client: int) -> LocalTask:
            level = self.assignment.level(client, round)
            return LocalTask(client, level, round, mark, cluster=cluster_of(client))

        return RoundProbe(
            range(self.data.num_clients) if everyone else there.tolist(),
            task,
            self.clients,
            {level: wire.dense_size(size) for level, size in self.levels.sizes.items()},
            {level: forward for level, (forward, _) in self.flops.items()},
            self.ledger,
            seconds,
            self.clustering.count,
            {level: wire.dense_size(self.own_size(level, round)) for level in self.levels},
        )

    def own_size(self, level: str, round: int) -> int:
        """Return the number of entries of a level that clusters do not share."""
        own = {name: entry for name, entry in self.index(level, round).items() if name not in self.shared}
        return index_layout(own).size

    def check_clustering(self) -> None:
        """Refuse what several models cannot do.

        Raises:
            ConfigurationError: shared tensors that the net lacks, or nothing that is not shared.
        """
        for pattern in self.clustering.shared:
            if not any(fnmatchcase(name, pattern) for name in self.tensors):
                raise ConfigurationError(
                    f"Expected patterns in clustering.shared that match tensors of the net, such as "
                    f"{next(iter(self.tensors))!r}, but got {pattern!r}"
                )
        if len(self.shared) == len(self.tensors):
            raise ConfigurationError("Expected tensors of the net that are not in clustering.shared but got none")

    def set_models(self, count: int) -> None:
        """Have so many global models: those at the end go, or new ones come, whose values are to be loaded."""
        if len(self.other_nets) + 1 == count:
            return
        self.close_bench()
        self.other_nets = nn.ModuleList(list(self.other_nets)[: count - 1])
        for _ in range(count - 1 - len(self.other_nets)):
            self.other_nets.append(self.build(self.levels.largest))

    def renew(self, models: Sequence[NewModel], optimizer: Optimizer, round: int) -> None:
        """Give clusters the models that a clustering asks for at the end of a round.

        Args:
            models: which, in order.
            optimizer: the server's; a copied model takes the state of its source along, a drawn one has none.
            round: the round.
        """
        for model in models:
            fresh = model.cluster > len(self.other_nets)
            if fresh:
                self.set_models(model.cluster + 1)
            draw = self.levels.draw(model.cluster, "round", round) if model.source is None else None
            random = generator(self.seed, "clustering", round, model.cluster)
            nets = [self.net, *self.other_nets]
            source = nets[model.source] if model.source is not None else draw
            assert source is not None
            targets = self.cluster_tensors[model.cluster]
            of_source = dict(source.state_dict(keep_vars=True))
            own = {n: p for n, p in parameters_of(nets[model.cluster]).items() if n not in self.shared}
            with torch.no_grad():
                for name, target in targets.items():
                    if name not in self.shared:
                        # A buffer stays as it is: with noise a running variance could become negative.
                        jitter = model.jitter if name in own else 0.0
                        target.copy_(_jittered(of_source[name].detach(), jitter, random))
            if fresh:
                add_group(optimizer, own.values())
            for name, parameter in own.items() if model.source != model.cluster else ():
                optimizer.state.pop(parameter, None)
                if model.source is not None and of_source[name] in optimizer.state:
                    optimizer.state[parameter] = copy.deepcopy(optimizer.state[of_source[name]])
        self.open_bench()

    def save_clusters(self) -> None:
        """Write ``clusters.csv``, if clusters can differ, and what else the clustering has to tell."""
        written = self.clustering.several and not self.trainer.sanity_checking
        for logger in self.loggers if written else ():
            if isinstance(logger, RunFolder):
                logger.write_table("clusters", CLUSTER_COLUMNS, self.clustering.history)
                for name, (columns, rows) in self.clustering.tables().items():
                    logger.write_table(name, columns, rows)


def add_group(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Give an optimizer one more group of parameters, with the settings of the first as they are now."""
    settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    optimizer.add_param_group({**settings, "params": list(parameters)})


def _jittered(value: Tensor, jitter: float, random: torch.Generator) -> Tensor:
    if not jitter:
        return value
    scale = jitter * float(value.double().norm()) / math.sqrt(value.numel())
    return value + scale * torch.randn(value.shape, generator=random, dtype=value.dtype).to(value.device)
