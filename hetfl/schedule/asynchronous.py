"""A server step for every update (FedAsync)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hetfl.entries import gather_flat
from hetfl.errors import ConfigurationError
from hetfl.part import Part
from hetfl.schedule.age import moved
from hetfl.schedule.staleness import StalenessWeight
from hetfl.schedule.timed import Timed
from hetfl.updates import Update


class Asynchronous(Timed):
    r"""The server mixes each client's model into the global model when it arrives.

    Xie, Koyejo, Gupta: Asynchronous Federated Optimization, 2019 (arXiv 1903.03934).

    .. math:: \theta_j \leftarrow (1 - a_{k,j}) \, \theta_j + a_{k,j} (\vartheta_{k,j} + u_{k,j}), \qquad
        a_{k,j} = a \, s(\tau_{k,j})

    with :math:`\vartheta_k` the global model that client k took, and u its decoded update; entries that a sparse update
    leaves out are those of :math:`\vartheta_k`. The aggregated update is
    :math:`a_{k,j} (\vartheta_{k,j} + u_{k,j} - \theta_j)`, so any server optimizer may take the step. Updates that
    arrive at the same time are mixed in one step, as the mean of their models. A copy of the global model is kept for
    every version that a client under way took.

    Args:
        mixing: a, in (0, 1].
        staleness: s; None: :class:`~hetfl.schedule.Polynomial`.
        concurrency: number of clients that work at a time; None: the selection's ``clients_per_round``.

    Raises:
        ConfigurationError: ``mixing`` is not in (0, 1], or ``concurrency`` is below 1.
    """

    def __init__(
        self, mixing: float = 0.6, staleness: StalenessWeight | None = None, concurrency: int | None = None
    ) -> None:
        super().__init__(concurrency, staleness)
        if not 0 < mixing <= 1:
            raise ConfigurationError(f"Expected mixing in (0, 1] but got {mixing}")
        self.mixing = mixing

    def _forget(self) -> None:
        super()._forget()
        self._values: dict[int, dict[str, Tensor]] = {}  # by round, the model at its beginning

    def due(self, round: int, accepted: int, now: float) -> bool:  # noqa: D102
        return accepted >= 1

    def expected(self) -> int:  # noqa: D102
        return 1

    def begin_taking(self, round: int) -> None:  # noqa: D102
        self._values[round] = {name: t.detach().clone() for name, t in self.parts.models.tensors[0].items()}

    def change(  # noqa: D102
        self, taken: int, sent: Part, factors_D: Tensor, most: int
    ) -> Callable[[Update], Update] | None:
        if most == 0:
            return None if self.mixing == 1 else partial(_scaled, self.mixing)
        with torch.no_grad():
            present_D = gather_flat(self.parts.models.tensors[0], sent)
            by_D = gather_flat(self._values[taken], sent).to(present_D) - present_D
        return partial(moved, by_D=by_D, factors_D=self.mixing * factors_D)

    def _prune(self) -> None:
        super()._prune()
        self._values = {round: values for round, values in self._values.items() if round in self._taken}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the base class, and the models that the clients under way took."""
        values = {round: {name: t.cpu() for name, t in model.items()} for round, model in self._values.items()}
        return {**super().state_dict(), "values": values}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        super().load_state_dict(state)
        self._values = {round: dict(values) for round, values in state["values"].items()}


def _scaled(factor: float, update: Update) -> Update:
    return update.scaled(factor)
