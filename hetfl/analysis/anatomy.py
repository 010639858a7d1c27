"""Analysis of aggregated sub-models: the drift of each level from the global model, and the norms of channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hetfl.aggregators import Aggregator
from hetfl.errors import ConfigurationError
from hetfl.federation import FederatedCallback, FederatedModule
from hetfl.layout import Index
from hetfl.part import Part, part_of
from hetfl.types import Report
from hetfl.updates import Update


class LevelDrift(FederatedCallback):
    r"""Measures the drift of each level: the distance of its own aggregate from the new global model.

    .. math:: d_l = \frac{\lVert (\theta_t + \Delta_l - \theta_{t+1})_{H_l} \rVert_2}
        {\lVert (\theta_{t+1})_{H_l} \rVert_2}

    with :math:`\Delta_l` the aggregate of the decoded updates of level l alone, by the aggregator of the run, and
    :math:`H_l` the entries of the trained tensors that the clients of these updates hold. The drift is 0 if no other
    level holds these entries and the server applies the mean unchanged. Snapshots have no updates, so the drift must be
    measured during the run. It does not change the run, and needs memory for one global model plus one per level. Each
    of several global models is compared with the levels of its own clients. Checkpoints have the rounds until then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[dict[str, object]] = []
        self._before: list[dict[str, Tensor]] = []  # by model
        self._levels: dict[tuple[int, str], tuple[Aggregator, int]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the table."""
        return {"rows": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the rows that :meth:`state_dict` returned."""
        self._rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a copy of every global model before the round."""
        models = cast(FederatedModule, pl_module).models
        self._before = [{name: of[name].detach().clone() for name in models.trained} for of in models.tensors]
        self._levels = {}

    def on_update(
        self, trainer: Trainer, module: LightningModule, update: Update, index: Index, report: Report
    ) -> None:
        """Add an update to those of its model and level."""
        key, federated = (report.model, report.level), cast(FederatedModule, module)
        if key not in self._levels:
            aggregator = copy.deepcopy(federated.aggregator.of(report.model))
            aggregator.reset(federated.models.tensors[report.model])
            self._levels[key] = aggregator, 0
        aggregator, clients = self._levels[key]
        aggregator.update(update, index, report)
        self._levels[key] = aggregator, clients + 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a validated round, because some checkpoints are written right after the validation."""
        self._measure(cast(FederatedModule, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure a round that is not validated."""
        self._measure(cast(FederatedModule, pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the updates of a round that did not end."""
        self._before, self._levels = [], {}

    def _measure(self, module: FederatedModule) -> None:
        """Compare the aggregate of every level with its global model after the round, once in a round."""
        for model, before in enumerate(self._before):
            for level in module.levels:
                clients, (distance, norm) = 0, (math.nan, math.nan)
                if (model, level) in self._levels:
                    aggregator, clients = self._levels[model, level]
                    distance, norm = _distance(before, aggregator, module.models.tensors[model])
                row = {"step": module.models.last_round, "model": model, "level": level, "clients": clients}
                self._rows.append({**row, "distance": distance, "norm": norm})
        self._before, self._levels = [], {}

    def table(self) -> pd.DataFrame:
        """Return a row per round, global model and level.

        Columns: ``step`` (the round), ``model`` (its number), ``level``, ``clients`` of the level in the round,
        ``distance`` and ``norm`` (the numerator and the denominator, in float64), ``drift``; the last three are NaN for
        a level without clients.
        """
        table = pd.DataFrame(self._rows, columns=["step", "model", "level", "clients", "distance", "norm"])
        return table.assign(drift=table["distance"] / table["norm"])


def channel_norms(
    weights: Mapping[str, Tensor], indices: Mapping[str, Index], tensors: Sequence[str] | None = None
) -> pd.DataFrame:
    r"""Return the norm of every output channel in index order, and the cumulative share of the squared norm.

    .. math:: n_c = \lVert W_{c, \cdot} \rVert_2, \qquad s_c = \frac{\sum_{i \le c} n_i^2}{\sum_i n_i^2}

    Args:
        weights: the tensors of the global model by name; the first dimension is the output channel.
        indices: the part of each level: ``module.levels.indices`` if parts are leading blocks; under any part rule
            :meth:`hetfl.analysis.Snapshot.part`, or ``module.parts.of_level(level, round)``.
        tensors: names of the tensors; None: all tensors of two or more dimensions.

    Returns:
        A row per tensor and channel: ``tensor``, ``channel``, ``norm`` and ``share`` in float64, and ``level``, the
        smallest level that holds the channel.

    Raises:
        ConfigurationError: a tensor is unknown, or ``tensors`` is empty.
    """
    names = [name for name in weights if weights[name].dim() > 1] if tensors is None else list(tensors)
    unknown = [name for name in names if name not in weights]
    if unknown or not names:
        wrong = ", ".join(map(repr, unknown)) or "none"
        raise ConfigurationError(f"Expected names of the model's tensors but got {wrong}")
    parts = {level: part_of(index) for level, index in indices.items()}
    largest_first = sorted(parts, key=lambda level: -parts[level].size)
    tables = []
    for name in names:
        norms_C = torch.linalg.vector_norm(weights[name].double().flatten(1), dim=1)
        smallest: list[str] = [largest_first[0]] * len(norms_C)
        for level in largest_first:  # a smaller level writes over a larger one
            for channel in _channels(parts[level], name):
                smallest[channel] = level
        share = norms_C.square().cumsum(0) / norms_C.square().sum()
        columns = {"channel": range(len(norms_C)), "norm": norms_C, "share": share, "level": smallest}
        tables.append(pd.DataFrame({"tensor": name, **columns}))
    return pd.concat(tables, ignore_index=True)


def _channels(part: Part, name: str) -> list[int]:
    """Return the channels of a tensor in which a part holds at least one entry."""
    if name not in part:
        return []
    first = part[name][0]
    channels = list(range(first.start, first.stop)) if isinstance(first, slice) else first.tolist()
    if part.mask_D is None:
        return channels
    held_C = part.layout.views(part.mask_D)[name].flatten(1).any(1)
    return [channel for channel, held in zip(channels, held_C.tolist(), strict=True) if held]


def _distance(before: Mapping[str, Tensor], aggregator: Aggregator, after: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the distance of a level's aggregate from the global model, and the norm of the latter, on held entries."""
    delta, holders = aggregator.compute()
    distance, size = 0.0, 0.0
    for name, start in before.items():
        end, held = after[name].detach(), holders[name] > 0
        distance += float((start + delta[name] - end)[held].double().square().sum())
        size += float(end[held].double().square().sum())
    return math.sqrt(distance), math.sqrt(size)
