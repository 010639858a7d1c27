"""The base class of growth, and the exchange of entries that it decides about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hetfl.layout import Index
from hetfl.parts.base import AskingProbe
from hetfl.piece import described, settings_of
from hetfl.pruning.densities import Masks, largest
from hetfl.types import Report
from hetfl.updates import Update


@dataclass(frozen=True)
class Exchange:
    """An exchange of entries of a mask in a round.

    Attributes:
        round: the round.
        seed: of the round's random choices.
        mask: the present mask of every weight.
        counts: how many entries of each weight are exchanged.
        weights: returns the present weights of the first global model.
        copies: returns copies of the present weights of every global model.
    """

    round: int
    seed: int
    mask: Masks
    counts: Mapping[str, int]
    weights: Callable[[], Mapping[str, Tensor]]
    copies: Callable[[], Sequence[Mapping[str, Tensor]]]

    def applied(self, scores: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the mask without its smallest weights, and with the best-scored entries outside of it.

        An entry is grown only if its score is above 0. If there are too few of them, as many fewer are dropped.

        Args:
            scores: of the entries of each weight.
            values: of the weights; None: the present ones.
        """
        values, masks = self.weights() if values is None else values, {}
        for name, mask in self.mask.items():
            score = scores[name].cpu().masked_fill(mask, 0.0)
            count = min(self.counts[name], int((score > 0).count_nonzero()))
            kept = self.strongest(name, mask, self.held(name) - count, values[name])
            masks[name] = kept | largest(score, count)
        return masks

    def held(self, name: str) -> int:
        """Return the number of held entries of a weight."""
        return int(self.mask[name].count_nonzero())

    def strongest(self, name: str, among: Tensor, count: int, values: Tensor | None = None) -> Tensor:
        """Return the mask of the largest absolute values of a weight among some of its entries.

        Args:
            name: of the weight.
            among: mask of the entries that compete.
            count: how many stay.
            values: of the weight; None: the present ones.
        """
        sizes = (self.weights()[name] if values is None else values).abs().cpu()
        return largest(sizes.masked_fill(~among, -1.0), count)


class Growth(ABC):
    """Chooses the entries that a :class:`~hetfl.parts.DynamicMask` exchanges. It is asked only when an exchange is due.

    Args:
        samples: of a client's data for its gradient, drawn at random; None: all.
    """

    asks_gradients: ClassVar[bool] = True
    """Whether it asks clients for gradients."""

    personal: ClassVar[bool] = False
    """Whether clients keep masks of their own; the server then erases nothing."""

    follows_clients: ClassVar[bool] = False
    """Whether it needs the values that clients trained."""

    def __init__(self, samples: int | None = None) -> None:
        self.samples = samples

    def consult(self, exchange: Exchange, cohort: Sequence[int], probe: AskingProbe) -> None:
        """Ask the cohort, before the parts of the round are drawn; by default nothing is asked.

        Args:
            exchange: the exchange at the end of the round.
            cohort: the clients of the round.
            probe: asks clients for gradients.
        """

    def of_client(self, client: int) -> Masks | None:
        """Return the mask that a client trains with in the round; None: the common one."""
        return None

    def observe(self, exchange: Exchange, update: Update, index: Index, report: Report) -> None:
        """Observe an update that the server accepted; by default it is not used."""

    @abstractmethod
    def chosen(self, exchange: Exchange) -> Masks:
        """Return the next mask, after the server's step; each weight has as many entries as before."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state between rounds for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        """Load the state that :meth:`state_dict` returned.

        Args:
            state: the state.
            shapes: of the weights, by name.
        """

    def describe(self) -> str:
        """Return the way of growing and its settings as short text."""
        return described(type(self).__name__, settings_of(self))


def zeros_like(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return zeros in the shapes of weights, on the CPU."""
    return {name: torch.zeros_like(weight, device="cpu") for name, weight in weights.items()}
