"""Static batch norm's statistics: gathered from clients before an evaluation, kept with the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl import wire
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import Clients
from hetfl.federation.ledger import Ledger
from hetfl.fleet import Work
from hetfl.local import LocalResult, LocalTask
from hetfl.local.jobs import statistics as gather
from hetfl.local.jobs import unpack_statistics
from hetfl.models.static_batch_norm import StaticStatistics, static_layers


class StaticStatisticsStore:
    """Per level, and per cluster, the sums that clients reported for the present global models.

    The server never sees data: a client that can afford a level gets that sub-model, passes its data through it once
    and reports sums; both ways and the passes are charged to the ledger.

    Args:
        contains: whether the first of two levels, by name, holds everything that the second one does.

    Attributes:
        levels: sums by level; for a cluster other than the first by ``level/cluster``.
    """

    def __init__(self, contains: Callable[[str, str], bool]) -> None:
        self.contains = contains
        self.levels: dict[str, dict[str, StaticStatistics]] = {}
        self.weights: int | None = None
        self._loaded = False

    def belong_to(self, weights: int) -> bool:
        """Return whether the statistics are those of the present global model.

        Args:
            weights: the global model's mark, which changes whenever its values do.
        """
        if self._loaded:
            # They came with a checkpoint, and so did the weights, just after them.
            self.weights, self._loaded = weights, False
        return self.weights == weights

    def gather(
        self,
        runner: Clients,
        nets: Mapping[str, nn.Module],
        tasks: Mapping[tuple[int, str], Iterable[LocalTask]],
        *,
        weights: int,
        forward_flops: Mapping[str, float],
        ledger: Ledger,
        informed: Iterable[tuple[int, int, str]] = (),
    ) -> None:
        """Rebuild all levels' statistics; a level for which nobody answers keeps the last known ones.

        Args:
            runner: has clients do their passes.
            nets: a net of each level, the largest first, for the names and sizes of its norm layers.
            tasks: per cluster and level the clients that are asked, the largest level of a cluster first.
            weights: mark of the model that the statistics belong to.
            forward_flops: per level the FLOPs of a forward pass of one sample.
            ledger: takes the costs.
            informed: clients, and of which cluster and level they have the present model already.

        Raises:
            ConfigurationError: nobody answered for a level, and none are known.
        """
        ledger.begin_phase()
        before, self.levels = self.levels, {}
        models: defaultdict[tuple[int, int], set[str]] = defaultdict(set)  # levels that a client has of a cluster's
        for client, cluster, level in informed:
            models[client, cluster].add(level)
        asked = {key: list(of_level) for key, of_level in tasks.items() if static_layers(nets[key[1]])}
        # Summed in float64: with thousands of batches a float32 sum loses digits of the variances.
        totals: dict[tuple[int, str], Tensor] = {}
        for result in runner.run(gather, [task for of_level in asked.values() for task in of_level]):
            client, level = result.task.client, result.task.level
            of, vector = (result.task.cluster, level), result.vector.double()
            totals[of] = totals[of] + vector if of in totals else vector
            has = models[client, result.task.cluster]
            work = self._work(nets[level], result, has, forward_flops[level])
            ledger.charge(client, result.task.round, work)
            has.add(level)
        for cluster, level in asked:
            key = _key(level, cluster)
            if (cluster, level) in totals:
                self.levels[key] = unpack_statistics(nets[level], totals[cluster, level])
            elif key in before:
                rank_zero_warn(f"No client gathered statistics for level {level}: the last known ones stand in")
                self.levels[key] = before[key]
            else:
                raise ConfigurationError(f"Expected a client to gather statistics for level {level} but got none")
        self.weights = weights

    def _work(self, net: nn.Module, result: LocalResult, has: set[str], forward_flops: float) -> Work:
        """Return what a client's sums took, if it has some levels of the model already."""
        # Who has a level that contains this one has it too. (A level that is narrower and deeper than another is no
        # part of it, so some clients are sent several.)
        has_it = any(self.contains(larger, result.task.level) for larger in has)
        down = 0 if has_it else wire.dense_size(sum(p.numel() for p in net.parameters()), 0)
        return Work(down, forward_flops * result.num_passes, wire.dense_size(result.vector.numel(), 0))

    def of_cluster(self, levels: Iterable[str], cluster: int) -> dict[str, dict[str, StaticStatistics]]:
        """Return by level the sums of a cluster's model; empty if nobody is in it."""
        return {level: self.levels[_key(level, cluster)] for level in levels if _key(level, cluster) in self.levels}

    def load_into(self, level: str, net: nn.Module, cluster: int = 0) -> None:
        """Give a level's net its statistics; none to a cluster's that nobody is in, which then can't be evaluated."""
        known = self.levels.get(_key(level, cluster))
        for name, layer in static_layers(net).items():
            if known is None:
                layer.ready = False
            else:
                layer.load(known[name])

    def state_dict(self, weights: int) -> dict[str, Any]:
        """Return the statistics as tensors and plain types; none if they are not those of the present model.

        Args:
            weights: the present model's mark.
        """
        present = self.levels if self.belong_to(weights) else {}
        return {
            "levels": {
                level: {n: {"mean": s.mean_C, "var": s.var_C, "batches": s.batches} for n, s in layers.items()}
                for level, layers in present.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self._loaded = bool(state["levels"])
        self.levels = {
            level: {
                n: StaticStatistics(s["mean"].to(torch.float64), s["var"].to(torch.float64), s["batches"])
                for n, s in layers.items()
            }
            for level, layers in state["levels"].items()
        }


def _key(level: str, cluster: int) -> str:
    return f"{level}/{cluster}" if cluster else level
