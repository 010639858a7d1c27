"""Hostile clients that know the updates of all others: a little is enough, and inner-product manipulation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from hetfl.aggregators import Aggregator, HolderMean
from hetfl.attacks.hostile import check_hostile, hostile_clients
from hetfl.entries import gather_flat
from hetfl.errors import ConfigurationError, RefusedUpdate
from hetfl.layout import Index
from hetfl.part import Part, part_of
from hetfl.piece import Facts
from hetfl.question import ClientProbe
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update

Tensors = Mapping[str, Tensor]


class Collusion(Aggregator):
    """Replaces the updates of hostile clients by forged ones, and passes all on to an aggregator.

    A forged update has the entries of its client's part. It is made from the mean and the standard deviation of the
    honest holders of each entry, after the hooks of the run; float buffers stay those of the client.

    Args:
        aggregator: the aggregator under attack.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: not exactly one of ``clients`` and ``share`` is given, or one is out of its range.
    """

    def __init__(self, aggregator: Aggregator, clients: Sequence[int] | None, share: float | None) -> None:
        check_hostile(type(self).__name__, clients, share)
        self.aggregator, self.clients, self.share = aggregator, clients, share
        self.reads_server_data, self.asks_clients = aggregator.reads_server_data, aggregator.asks_clients
        self.asks_losses, self.by_size = aggregator.asks_losses, aggregator.by_size  # type: ignore[misc]
        self.takes_sparse, self.takes_stale = aggregator.takes_sparse, aggregator.takes_stale  # type: ignore[misc]
        self.changes_frozen = aggregator.changes_frozen  # type: ignore[misc]
        self._means, self._squares = HolderMean(), HolderMean()
        self._hostile: frozenset[int] = frozenset()
        self._held: list[tuple[Update, Part, Report]] = []
        self._honest = 0

    @abstractmethod
    def forged(self, means: Tensors, deviations: Tensors, honest: int, hostile: int) -> Tensors:
        """Return the forged values of every tensor.

        Args:
            means: of the honest holders of each entry, 0 without holders.
            deviations: their standard deviations.
            honest: number of honest updates of the round.
            hostile: number of hostile ones.
        """

    def reset(self, tensors: Tensors) -> None:  # noqa: D102
        for aggregator in (self.aggregator, self._means, self._squares):
            aggregator.reset(tensors)
        self._held, self._honest = [], 0

    def update(self, update: Update, index: Index, report: Report) -> None:  # noqa: D102
        if report.client in self._hostile:
            self._held.append((update, part_of(index), report))
            return
        self.aggregator.update(update, index, report)
        self._honest += 1
        self._means.update(update, index, report)
        squares = DenseUpdate(update.to_dense().square(), exact=update.exact)
        self._squares.update(squares, index, report)

    def compute(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # noqa: D102
        means, squares = self._means.compute()[0], self._squares.compute()[0]
        deviations = {name: (squares[name] - mean.square()).clamp(min=0).sqrt() for name, mean in means.items()}
        forged = self.forged(means, deviations, self._honest, len(self._held))
        for update, part, report in self._held:
            values = gather_flat(forged, part)[: update.size]
            try:
                self.aggregator.update(DenseUpdate(values, exact=update.exact), part, report)
            except RefusedUpdate:
                continue  # the defence has noticed it
        return self.aggregator.compute()

    def setup(self, facts: Facts) -> None:  # noqa: D102
        self._hostile = hostile_clients(self.clients, self.share, facts.num_clients)
        self.aggregator.setup(facts)

    def shared_bytes(self, client: int) -> int:  # noqa: D102
        return self.aggregator.shared_bytes(client)

    def bind(self, folder: str | None) -> None:  # noqa: D102
        self.aggregator.bind(folder)

    def begin(self) -> None:  # noqa: D102
        self.aggregator.begin()

    def begin_round(self, round: int, lr: float) -> None:  # noqa: D102
        self.aggregator.begin_round(round, lr)

    def inquire(self, round: int, cohort: Sequence[int], probe: ClientProbe) -> None:  # noqa: D102
        self.aggregator.inquire(round, cohort, probe)

    def client_values(self) -> dict[str, Mapping[int, float]]:  # noqa: D102
        return self.aggregator.client_values()

    def end_round(self, round: int) -> None:  # noqa: D102
        self.aggregator.end_round(round)

    def columns(self) -> dict[str, float]:  # noqa: D102
        return self.aggregator.columns()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return self.aggregator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self.aggregator.load_state_dict(state)

    def checkpointed(self) -> None:  # noqa: D102
        self.aggregator.checkpointed()


class ALittleIsEnough(Collusion):
    r"""Send :math:`\mu_j - z \sigma_j`: small changes, hidden among honest ones, that all point the same way.

    With ``z`` null, of n updates of which m are hostile, with :math:`\Phi` the normal distribution:

    .. math:: z = \Phi^{-1}\Bigl(\frac{n - m - s}{n - m}\Bigr), \qquad s = \lfloor n / 2 + 1 \rfloor - m

    Where hostile updates are the majority, s is 1. Baruch, Baruch, Goldberg: A Little Is Enough, NeurIPS 2019
    (arXiv 1902.06156), algorithm 3.

    Args:
        aggregator: the aggregator under attack.
        z: standard deviations from the mean; None: the formula above.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        z: float | None = None,
        clients: Sequence[int] | None = None,
        share: float | None = None,
    ) -> None:
        super().__init__(aggregator, clients, share)
        if z is not None and not 0.0 <= z < 1e9:
            raise ConfigurationError(f"Expected z in [0, 1e9) or null for ALittleIsEnough but got {z}")
        self.z = z

    def distance(self, honest: int, hostile: int) -> float:
        """Return z for a round.

        >>> round(ALittleIsEnough(HolderMean(), share=0.2).distance(40, 10), 4)
        0.2533
        """
        if self.z is not None:
            return self.z
        needed = max(1, (honest + hostile) // 2 + 1 - hostile)
        share = (honest - needed) / honest if honest else 0.0
        return NormalDist().inv_cdf(share) if 0.0 < share < 1.0 else 0.0

    def forged(self, means: Tensors, deviations: Tensors, honest: int, hostile: int) -> Tensors:  # noqa: D102
        z = self.distance(honest, hostile)
        return {name: torch.sub(mean, deviations[name], alpha=z) for name, mean in means.items()}


class InnerProduct(Collusion):
    r"""Send :math:`-\epsilon \mu_j`, so that the step and the honest mean have a negative inner product.

    Xie, Koyejo, Gupta: Fall of Empires, UAI 2019 (arXiv 1903.03936).

    Args:
        aggregator: the aggregator under attack.
        epsilon: :math:`\epsilon`, above 0.
        clients: ids of the hostile clients; None: ``share`` says how many.
        share: their share of all clients, which are drawn.

    Raises:
        ConfigurationError: a number is out of its range, or not exactly one of ``clients`` and ``share`` is given.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        epsilon: float = 0.5,
        clients: Sequence[int] | None = None,
        share: float | None = None,
    ) -> None:
        super().__init__(aggregator, clients, share)
        if not 0.0 < epsilon < 1e9:
            raise ConfigurationError(f"Expected epsilon in (0, 1e9) for InnerProduct but got {epsilon}")
        self.epsilon = epsilon

    def forged(self, means: Tensors, deviations: Tensors, honest: int, hostile: int) -> Tensors:  # noqa: D102
        return {name: -self.epsilon * mean for name, mean in means.items()}
