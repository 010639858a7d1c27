"""Statistics of static batch norm: gathered from clients before an evaluation, stored with the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from hetfl import wire
from hetfl.accounting import Downloads, Ledger
from hetfl.accounting.downloads import with_sources
from hetfl.defence.outlying import refusals
from hetfl.defence.ranges import number_of_batches
from hetfl.errors import ConfigurationError
from hetfl.federation.clients import Clients
from hetfl.fleet import Work
from hetfl.global_models import GlobalModels
from hetfl.local import Result
from hetfl.local.jobs import statistics as gather
from hetfl.local.jobs import unpack_statistics
from hetfl.models.static_batch_norm import StaticStatistics, load_statistics, static_layers
from hetfl.part import Part
from hetfl.piece import Piece
from hetfl.types import Task


class StaticStatisticsStore(Piece):
    """Per level, and per cluster, the sums that clients reported for the present global models.

    The server never sees data: a client that can afford a level downloads that sub-model, passes its data through it
    once and reports sums. The ledger is charged for the download, the upload and the passes. The sums are those of the
    global model, whose personal tensors have their initial values: clients do not use their own personal tensors here.

    Args:
        models: the global models.
        most: number of clients that gather the sums of a level, drawn from those that can afford it; None: all of them.

    Attributes:
        levels: sums by level; the key of a model other than the first is ``level/model``.

    Raises:
        ConfigurationError: ``most`` is below 1.
    """

    for_evaluation: ClassVar[bool] = True

    def __init__(self, models: GlobalModels, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise ConfigurationError(f"Expected statistics_clients of at least 1 or null but got {most}")
        self.models, self.most = models, most
        self.levels: dict[str, dict[str, StaticStatistics]] = {}
        self._mark: int | None = None
        self._loaded = False

    @property
    def current(self) -> bool:
        """Whether the statistics are those of the present global models."""
        self.begin()
        return self._mark == self.models.mark

    def begin(self) -> None:
        """Mark loaded statistics as those of the present values, which come from the same checkpoint."""
        if self._loaded:
            self._mark, self._loaded = self.models.mark, False

    def gather(
        self,
        runner: Clients,
        nets: Mapping[str, nn.Module],
        tasks: Mapping[tuple[int, str], Iterable[Task]],
        *,
        ledger: Ledger,
        batch_size: int,
        downloads: Downloads,
        informed: Mapping[tuple[int, int], Part],
    ) -> None:
        """Gather the statistics of all levels anew; a level without an answer keeps its last known statistics.

        Sums that cannot be true, or that lie far outside the others, are left out (:mod:`hetfl.defence.outlying`). A
        level without any statistics cannot be evaluated.

        Args:
            runner: runs the clients' passes.
            nets: a net of each level, the largest first, for the names and sizes of its norm layers.
            tasks: per model and level the clients that are asked, the largest level of a model first.
            ledger: counts the costs.
            batch_size: samples in a batch of a client's pass.
            downloads: records what clients have downloaded.
            informed: by client and model, the part whose present values the client already has.
        """
        ledger.begin_phase("statistics")
        before, self.levels = self.levels, {}
        # By client and model, the parts whose present values the client has.
        has = defaultdict[tuple[int, int], list[Part]](list, {key: [part] for key, part in informed.items()})
        asked = {key: list(of_level) for key, of_level in tasks.items() if static_layers(nets[key[1]])}
        answers: defaultdict[tuple[int, str], list[Result]] = defaultdict(list)
        for result in runner.run(gather, with_sources(chain.from_iterable(asked.values()), informed)):
            task = result.task
            answers[task.model, task.level].append(result)
            ledger.charge(task.client, task.round, self._work(result, has[task.key], downloads))
            has[task.key].append(task.part)
        for model, level in asked:
            name = _key(level, model)
            kept = _kept(nets[level], answers[model, level], batch_size, ledger)
            if kept:
                self.levels[name] = unpack_statistics(nets[level], _total(kept))
            elif name in before:
                rank_zero_warn(f"No client gathered statistics for level {level}: the last known ones stand in")
                self.levels[name] = before[name]
            else:
                rank_zero_warn(f"No client gathered statistics for level {level}, so it cannot be evaluated")
        self._mark = self.models.mark

    def _work(self, result: Result, has: Sequence[Part], downloads: Downloads) -> Work:
        """Return the work for a client's sums, given the parts of the model that the client already has."""
        # A level that is narrower and deeper than another is no part of it, so some clients download several parts.
        task, down = result.task, 0
        if not any(larger.covers(task.part) for larger in has):
            down = downloads.bytes(task, self.models.float_buffers)  # alone, where what has its source was lost
            downloads.note(task)
        return self.models.levels.work(task, down, result.report.passes, wire.dense_size(result.vector.numel(), 0))

    def of_model(self, model: int) -> dict[str, dict[str, StaticStatistics]]:
        """Return by level the sums of a model, for levels whose sums are known."""
        names = {level: _key(level, model) for level in self.models.levels}
        return {level: self.levels[name] for level, name in names.items() if name in self.levels}

    def load_into(self, level: str, net: nn.Module, model: int = 0) -> None:
        """Load a level's statistics into its net; if they are unknown, the net is marked as not ready."""
        load_statistics(net, self.levels.get(_key(level, model)))

    def describe(self) -> str:
        """Return nothing: statistics have no settings that change a run's numbers."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Return the statistics as tensors and plain types; no statistics if the models have changed since."""
        present = self.levels if self.current else {}
        return {
            "levels": {
                level: {n: {"mean": s.mean_C, "var": s.var_C, "batches": s.batches} for n, s in layers.items()}
                for level, layers in present.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that :meth:`state_dict` returned."""
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


def _kept(net: nn.Module, answers: Sequence[Result], batch_size: int, ledger: Ledger) -> list[Result]:
    """Return the answers whose sums are added up; warn about the refused ones, and count them in the ledger."""
    if not answers:
        return []
    layers = {name: layer.weight.numel() for name, layer in static_layers(net).items()}
    batches = [number_of_batches(answer.report.passes, batch_size) for answer in answers]
    refused = refusals(layers, [answer.vector for answer in answers], batches)
    for row, reason in sorted(refused.items()):
        task = answers[row].task
        ledger.refuse()
        sender = f"client {ledger.called(task.client)} at level {task.level}"
        rank_zero_warn(f"Round {task.round + 1}: statistics of {sender} refused: {reason}")
    return [answer for row, answer in enumerate(answers) if row not in refused]


def _total(answers: Sequence[Result]) -> Tensor:
    """Return the total of all sums, in float64: in float32, thousands of batches would lose digits of the variances."""
    total = answers[0].vector.double()
    for answer in answers[1:]:
        total = total + answer.vector.double()
    return total
