"""Static batch norm's statistics: gathered from clients before an evaluation, kept with the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl import wire
from hetfl.federation.clients import Clients
from hetfl.federation.ledger import Ledger
from hetfl.federation.outlying import refusals
from hetfl.federation.ranges import number_of_batches
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
        batch_size: int,
        informed: Iterable[tuple[int, int, str]] = (),
    ) -> None:
        """Rebuild all levels' statistics; a level for which nobody answers keeps the last known ones.

        Sums that cannot be true, or lie far outside their cohort's, are left out (:mod:`hetfl.federation.outlying`).
        Without last known ones a level has none, and cannot be evaluated.

        Args:
            runner: has clients do their passes.
            nets: a net of each level, the largest first, for the names and sizes of its norm layers.
            tasks: per cluster and level the clients that are asked, the largest level of a cluster first.
            weights: mark of the model that the statistics belong to.
            forward_flops: per level the FLOPs of a forward pass of one sample.
            ledger: takes the costs.
            batch_size: samples in a batch of a client's pass.
            informed: clients, and of which cluster and level they have the present model already.
        """
        ledger.begin_phase()
        before, self.levels = self.levels, {}
        models: defaultdict[tuple[int, int], set[str]] = defaultdict(set)  # levels that a client has of a cluster's
        for client, cluster, level in informed:
            models[client, cluster].add(level)
        asked = {key: list(of_level) for key, of_level in tasks.items() if static_layers(nets[key[1]])}
        answers: defaultdict[tuple[int, str], list[LocalResult]] = defaultdict(list)
        for result in runner.run(gather, [task for of_level in asked.values() for task in of_level]):
            client, level = result.task.client, result.task.level
            answers[result.task.cluster, level].append(result)
            has = models[client, result.task.cluster]
            work = self._work(nets[level], result, has, forward_flops[level])
            ledger.charge(client, result.task.round, work)
            has.add(level)
        for cluster, level in asked:
            key = _key(level, cluster)
            kept = _kept(nets[level], answers[cluster, level], batch_size, ledger)
            if kept:
                self.levels[key] = unpack_statistics(nets[level], _total(kept))
            elif key in before:
                rank_zero_warn(f"No client gathered statistics for level {level}: the last known ones stand in")
                self.levels[key] = before[key]
            else:
                rank_zero_warn(f"No client gathered statistics for level {level}, so it cannot be evaluated")
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
        """Give a level's net its statistics; none where none are known, and it then can't be evaluated."""
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


def _kept(net: nn.Module, answers: Sequence[LocalResult], batch_size: int, ledger: Ledger) -> list[LocalResult]:
    """Return the answers of a cohort whose sums are added up; name the clients of the others, and count them."""
    if not answers:
        return []
    layers = {name: layer.weight.numel() for name, layer in static_layers(net).items()}
    batches = [number_of_batches(answer.num_samples, batch_size) for answer in answers]
    refused = refusals(layers, [answer.vector for answer in answers], batches)
    for row, reason in sorted(refused.items()):
        task = answers[row].task
        ledger.refuse()
        rank_zero_warn(
            f"Round {task.round}: statistics of client {task.client} at level {task.level} refused: {reason}"
        )
    return [answer for row, answer in enumerate(answers) if row not in refused]


def _total(answers: Sequence[LocalResult]) -> Tensor:
    """Return the sum of all sums, in float64: with thousands of batches a float32 sum loses digits of the variances."""
    total = answers[0].vector.double()
    for answer in answers[1:]:
        total = total + answer.vector.double()
    return total
