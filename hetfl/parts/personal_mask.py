"""Sub-FedAvg: every client prunes a mask of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.errors import ConfigurationError
from hetfl.layout import Index
from hetfl.parts.client_values import client_values
from hetfl.parts.mask_rule import MaskRule
from hetfl.pruning.densities import Masks, best, packed, unpacked
from hetfl.types import Report
from hetfl.updates import Update


class PersonalMask(MaskRule):
    r"""Every client has a mask of its own, which shrinks by a step each time that the client has learned enough.

    A client begins with all entries. After a round in which it took part, its mask loses the entries with the smallest
    of the values that it trained, in every weight alone, if

    - its density is above that of its level, which is the target and is never passed;
    - its mean training loss was at most ``loss``;
    - the masks by the values before and after its training differ in more than a share ``distance`` of the entries.

    Each step removes a share ``step`` of all entries. Pruned entries never return. The server keeps all entries; an
    entry's mean is over its holders.

    Vahidian, Morafah, Lin: Personalized Federated Learning by Structured and Unstructured Pruning under Data
    Heterogeneity, ICDCS Workshops 2021 (arXiv 2105.00562), Sub-FedAvg (Un). As in the paper: steps, target, distance of
    masks, mean over holders. Not as in the paper: the distance is between the start and the end of a round, not between
    epochs; the condition is the training loss, because the published code decides by test accuracy.

    Args:
        step: share of all entries that a step removes, in (0, 1).
        loss: largest mean training loss of a client that prunes; None: any.
        distance: share of entries in which the two masks must differ, in [0, 1).

    Raises:
        ConfigurationError: a setting is out of its range.
    """

    personal = True

    several_densities: ClassVar[bool] = True

    def __init__(self, step: float = 0.1, loss: float | None = None, distance: float = 1e-4) -> None:
        if not 0.0 < step < 1.0 or not 0.0 <= distance < 1.0 or (loss is not None and loss <= 0):
            raise ConfigurationError(
                "Expected step in (0, 1), distance in [0, 1) and loss above 0 or null but got "
                f"{step}, {distance}, {loss}"
            )
        self.step, self.loss, self.distance = step, loss, distance
        self._masks: dict[int, Masks] = {}
        self._steps: dict[int, int] = {}
        self._begun: dict[str, Tensor] = {}

    def first_masks(self) -> dict[float, dict[str, Tensor]]:  # noqa: D102
        whole = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in self.weights.items()}
        return dict.fromkeys(self.sparse, whole)

    def of_client(self, client: int, density: float) -> Masks | None:  # noqa: D102
        return self._masks.get(client)

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self._begun = {name: weight.clone() for name, weight in self.weights.items()}

    def observe(self, update: Update, index: Index, report: Report) -> None:
        """Prune the client's mask by the values that it trained, if it has learned enough."""
        client, target = report.client, self.levels[report.level].density
        steps = self._steps.get(client, 0)
        present, next_density = max(target, 1.0 - steps * self.step), max(target, 1.0 - (steps + 1) * self.step)
        learned = self.loss is None or report.loss <= self.loss
        if next_density >= present or not learned:
            return
        held = self._masks.get(client) or self.held(target)
        before, after = (
            self._pruned(held, each, next_density) for each in (self._begun, client_values(self._begun, update, index))
        )
        differing = sum(int((before[name] != after[name]).count_nonzero()) for name in after)
        if differing > self.distance * sum(mask.numel() for mask in after.values()):
            self._masks[client], self._steps[client] = after, steps + 1

    def _pruned(self, held: Masks, values: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
        sizes = {name: values[name].abs().cpu().masked_fill(~mask, -1.0) for name, mask in held.items()}
        return best(sizes, "layer", density)

    def columns(self) -> dict[str, float]:
        """Return the mean density of the masks of all clients that pruned, over all weights."""
        counts = [sum(int(m.count_nonzero()) for m in masks.values()) for masks in self._masks.values()]
        total = sum(weight.numel() for weight in self.weights.values())
        return {"parts/density": sum(counts) / len(counts) / total} if counts else {"parts/density": 1.0}

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        masks = {client: packed(masks) for client, masks in self._masks.items()}
        return {**super().state_dict(), "clients": masks, "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._masks = {client: unpacked(bits, self.shapes) for client, bits in state["clients"].items()}
        self._steps = dict(state["steps"])
