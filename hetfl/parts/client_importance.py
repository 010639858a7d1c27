"""Masks of the entries that matter most to each client's own data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.arguments import choice
from hetfl.errors import ConfigurationError
from hetfl.parts.base import GradientProbe
from hetfl.parts.mask_rule import MaskRule, weights_of
from hetfl.pruning.criteria import Criterion, GradientPerTime, Magnitude, SquaredTaylor
from hetfl.pruning.densities import Masks, Scope, best, packed, unpacked
from hetfl.pruning.gradients import MaskRequest
from hetfl.submodel import put


class ClientImportance(MaskRule):
    """Every client holds the entries with the best scores by its own data, as many as its level's density says.

    So the client's device sets the number of pruned entries, and its data sets their positions. Whenever a client takes
    part and its mask is older than ``every`` rounds, it downloads all entries of its level's index, passes its data
    through them once, forward and backward, and sends the positions that it will hold. The server keeps all entries; an
    entry's mean is over its holders.

    Args:
        criterion: scores entries, by the client's own gradient; None: :class:`~hetfl.pruning.criteria.SquaredTaylor`.
        scope: where entries compete.
        every: rounds between two choices of a client.
        samples: of a client's data, drawn at random; None: all.

    Raises:
        ConfigurationError: a setting is out of its range, or the criterion needs earlier values of the weights.
    """

    personal = True
    asks_gradients = True
    follows_clients = True

    several_densities: ClassVar[bool] = True

    def __init__(
        self, criterion: Criterion | None = None, scope: Scope = "layer", every: int = 10, samples: int | None = None
    ) -> None:
        self.criterion, self.scope = criterion or SquaredTaylor(), choice("scope", scope, Scope)
        self._scope = self.scope
        self.every, self.samples = every, samples
        if every < 1:
            raise ConfigurationError(f"Expected every of at least 1 round but got {every}")
        if self.criterion.needs_history or self.criterion.of_norms:
            raise ConfigurationError(
                "Expected a criterion of present weights and gradients, for every entry, but got "
                f"{self.criterion.describe()}"
            )
        self._masks: dict[tuple[int, float], tuple[int, Masks]] = {}  # by client and density: the round of the choice

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        scores = Magnitude().scores(self.evidence())
        return {density: best(scores, self.scope, density) for density in self.sparse}

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self._masks[client, density][1] if (client, density) in self._masks else None

    def consult(self, round: int, cohort: Sequence[int], probe: GradientProbe) -> None:
        """Have the clients whose masks are too old choose new ones."""
        density = {client: self.levels[probe.level(client)].density for client in cohort}
        due = [client for client in cohort if density[client] < 1.0 and self._due(client, density[client], round)]
        request = MaskRequest(
            samples=self.samples,
            criterion=self.criterion,
            scope=self.scope,
            densities={name: level.density for name, level in self.levels.items()},
            weights=[weights_of(net) for net in self.models],
            seconds=self.seconds() if isinstance(self.criterion, GradientPerTime) else {},
            seed=self.seed,
        )
        for answer in probe.gradients(due, request):
            masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in self.shapes.items()}
            for name, sent in answer.sent().items():
                if name in masks:
                    put(masks[name], answer.part[name], sent)
            self._masks[answer.client, density[answer.client]] = round, masks

    def _due(self, client: int, density: float, round: int) -> bool:
        chosen = self._masks.get((client, density))
        return chosen is None or round - chosen[0] >= self.every

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        masks = [[client, density, round, packed(each)] for (client, density), (round, each) in self._masks.items()]
        return {**super().state_dict(), "clients": masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._masks = {
            (client, density): (round, unpacked(bits, self.shapes)) for client, density, round, bits in state["clients"]
        }
