"""Buffered rounds (FedBuff)."""

from __future__ import annotations

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.schedule.staleness import StalenessWeight
from hetfl.schedule.timed import Timed


class Buffered(Timed):
    r"""The server steps once it has accepted K updates, from whatever versions of the model.

    Nguyen et al.: Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022 (arXiv 2106.06639).

    .. math:: \theta_j \leftarrow \theta_j + \frac{1}{|H_j|} \sum_{k \in H_j} s(\tau_{k,j}) \, u_{k,j}, \qquad
        H_j = \{k \text{ in the buffer} : j \in \text{index}_k\}

    If all clients hold the whole model, this is FedBuff's :math:`\frac{1}{K} \sum_k s(\tau_k) u_k` with the paper's
    weight :math:`1 / \sqrt{1 + \tau}`. Updates that arrive at the same time as the K-th are in the same step. With K
    and ``concurrency`` equal to the cohort, and clients that need equal times, the models are those of
    :class:`~hetfl.schedule.Synchronous`, bit for bit.

    Args:
        size: K.
        concurrency: number of clients that work at a time; None: the selection's ``clients_per_round``.
        staleness: s; None: :class:`~hetfl.schedule.Polynomial`.

    Raises:
        ConfigurationError: ``size`` or ``concurrency`` is below 1.
    """

    def __init__(
        self, size: int = 10, concurrency: int | None = None, staleness: StalenessWeight | None = None
    ) -> None:
        super().__init__(concurrency, staleness)
        if size < 1:
            raise ConfigurationError(f"Expected size of at least 1 but got {size}")
        self.size = size

    def setup(self, facts: Facts) -> None:
        """Set the number of clients.

        Raises:
            ConfigurationError: ``size`` or ``concurrency`` is larger than it.
        """
        super().setup(facts)
        if self.size > facts.num_clients:
            raise ConfigurationError(
                f"Expected size of at most the number of clients, {facts.num_clients}, but got {self.size}: a client "
                "has one update in the buffer"
            )

    def due(self, round: int, accepted: int, now: float) -> bool:  # noqa: D102
        return accepted >= self.size

    def expected(self) -> int:  # noqa: D102
        return self.size
