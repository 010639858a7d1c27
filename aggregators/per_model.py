"""One aggregator per global model, and one over all clients for the tensors that the models share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import Tensor

from hetfl.aggregators.base import Aggregator, check_step
from hetfl.finite import require_finite
from hetfl.layout import Index
from hetfl.piece import Facts, Piece
from hetfl.question import ClientProbe
from hetfl.types import SHARED, Report
from hetfl.updates import Update

Tensors = dict[str, Tensor]


class Aggregators(Piece):
    """Passes each update to the aggregator of its model, and to one more for the tensors that the models share.

    Args:
        aggregator: the first model's; the others are copies of its initial state.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.first = aggregator
        self.reads_server_data, self.asks_clients = aggregator.reads_server_data, aggregator.asks_clients
        self._given = copy.deepcopy(aggregator)
        self._by_model: dict[int, Aggregator] = {0: aggregator}
        self._facts = Facts()
        self._folder: str | None = None
        self._round: tuple[int, float] | None = None

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._facts = facts
        for aggregator in self._by_model.values():
            aggregator.setup(facts)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self._folder = folder
        for aggregator in self._by_model.values():
            aggregator.bind(folder)

    def begin(self) -> None:  # noqa: D102
        for aggregator in self._by_model.values():
            aggregator.begin()

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._round = (round, lr)
        for aggregator in self._by_model.values():
            aggregator.begin_round(round, lr)

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:  # noqa: D102
        for aggregator in self._by_model.values():
            aggregator.inquire(round, cohort, probe)

    def end_round(self, round: int) -> None:  # noqa: D102
        for aggregator in self._by_model.values():
            aggregator.end_round(round)

    def client_values(self) -> dict[str, Mapping[int, float]]:
        """Return the values of every model's aggregator; a model's number precedes the measure, but for the first."""
        return {
            f"{model}:{measure}" if model > 0 else measure: values
            for model, aggregator in self._by_model.items()
            for measure, values in aggregator.client_values().items()
            if model != SHARED
        }

    def describe(self) -> str:  # noqa: D102
        return self.first.describe()

    def columns(self) -> dict[str, float]:
        """Return the columns over all models: sums, but for the smallest ``lowest`` and the largest ``highest``."""
        found = [aggregator.columns() for model, aggregator in self._by_model.items() if model != SHARED]
        return {name: _over_models(name)(each[name] for each in found if name in each) for name in chain(*found)}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every model's aggregator."""
        return {"by_model": {model: aggregator.state_dict() for model, aggregator in self._by_model.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        for model, content in state["by_model"].items():
            self.of(model).load_state_dict(content)

    def checkpointed(self) -> None:  # noqa: D102
        for aggregator in self._by_model.values():
            aggregator.checkpointed()

    def shared_bytes(self, client: int, model: int) -> int:
        """Return the bytes that a client is sent beside its part of a model."""
        return self.of(model).shared_bytes(client)

    def reset(self, models: Sequence[Mapping[str, Tensor]], shared: frozenset[str]) -> None:
        """Begin a round.

        Args:
            models: every global model's tensors by name.
            shared: names of the tensors that all models share.
        """
        self._models, self._shared = models, shared
        self._used: set[int] = set()
        if len(models) == 1:
            self._used_of(0)

    def update(self, update: Update, index: Index, report: Report) -> None:
        """Add one client's update; see :class:`hetfl.aggregators.Aggregator`."""
        self._used_of(report.model).update(update, index, report)
        if self._shared:
            self._used_of(SHARED).update(update, index, replace(report, model=SHARED))

    def compute(self, correct: Callable[[int, Tensors, Tensors], Tensors]) -> tuple[Tensors, Tensors, Tensors]:
        """Return by name the global tensors with updates, their steps and their holders.

        Models without updates are left out: their tensors, and the optimizer's state for them, do not change. The
        number of the model precedes the names of models other than the first.

        Args:
            correct: returns the corrected steps, given a model's number, its tensors' steps and their holders.

        Raises:
            ConfigurationError: an aggregator returned something else than finite steps of the tensors.
        """
        tensors: Tensors = {}
        steps: Tensors = {}
        held: Tensors = {}
        for model in sorted(self._used):
            of_model = self._models[max(model, 0)]
            stepped = [name for name in of_model if (name in self._shared) == (model == SHARED)]
            step = self.of(model).compute()
            delta, holders = check_step(step, {name: of_model[name] for name in stepped}, type(self.first).__name__)
            require_finite({name: delta[name] for name in stepped}, f"steps from {self._source()}")
            corrected = correct(model, {name: delta[name] for name in stepped}, holders)
            for name in stepped:
                key = f"{model}:{name}" if model > 0 else name
                tensors[key], steps[key], held[key] = of_model[name], corrected[name], holders[name]
        return tensors, steps, held

    def _source(self) -> str:
        """Return where steps are from, for messages."""
        return f"{type(self.first).__name__}.compute" + (f" in round {self._round[0] + 1}" if self._round else "")

    def of(self, model: int) -> Aggregator:
        """Return the aggregator of a model."""
        if model not in self._by_model:
            aggregator = self._by_model[model] = copy.deepcopy(self._given)
            aggregator.setup(self._facts)
            aggregator.bind(self._folder)
            aggregator.begin()
            if self._round is not None:
                aggregator.begin_round(*self._round)
        return self._by_model[model]

    def _used_of(self, model: int) -> Aggregator:
        aggregator = self.of(model)
        if model not in self._used:
            aggregator.reset(self._models[max(model, 0)])
            self._used.add(model)
        return aggregator


def _over_models(column: str) -> Callable[[Iterable[float]], float]:
    """Return the function that makes one value of the models' values of a column."""
    return {"lowest": min, "highest": max}.get(column.rpartition("/")[2], sum)
