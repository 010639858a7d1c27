"""Selection of clients that are predicted to meet a deadline."""

from __future__ import annotations

import math

from lightning.pytorch.utilities import rank_zero_warn

from hetfl.arguments import real
from hetfl.errors import ConfigurationError
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import uniformly


class DeadlineAware(Selection):
    r"""A uniform selection among the clients whose round is predicted to take no longer than a deadline.

    This is the rule of FedCS (Nishio and Yonetani, ICC 2019, arXiv 1804.08333) without its schedule of a shared
    channel: here clients train and send in parallel. :math:`\lceil m (1 + o) \rceil` clients take part, a share o more
    than needed, because some may not answer (Bonawitz et al., MLSys 2019, arXiv 1902.01046); fewer if fewer meet the
    deadline. If no client meets it, the m fastest take part, ties by id, with a warning. Slow clients never take part,
    so the model does not learn from data that only they have.

    Args:
        deadline: simulated seconds of a round, transfers included.
        clients_per_round: size m of the cohort.
        over_selection: share o of additional clients.

    Raises:
        ConfigurationError: the deadline is not positive, or the share is negative.
    """

    def __init__(self, deadline: float, clients_per_round: int = 10, over_selection: float = 0.0) -> None:
        super().__init__(clients_per_round)
        if not real("deadline", deadline) > 0:
            raise ConfigurationError(f"Expected a deadline above 0 seconds but got {deadline}")
        if not 0 <= real("over_selection", over_selection) < math.inf:
            raise ConfigurationError(f"Expected a finite over_selection of at least 0 but got {over_selection}")
        self.deadline, self.over_selection = deadline, over_selection

    @property
    def cohort_size(self) -> int:
        """Number of clients that take part if enough clients meet the deadline."""
        # round() first: by rounding, a product such as 10 * 0.7 may be slightly above the intended whole number.
        return self.clients_per_round + math.ceil(round(self.clients_per_round * self.over_selection, 9))

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        seconds = dict(zip(probe.clients, probe.seconds(probe.clients), strict=True))
        able = [client for client, needed in seconds.items() if needed <= self.deadline]
        if able:
            return uniformly(able, self.cohort_size, generator(self.seed, "selection", round))
        fastest = sorted(seconds, key=lambda client: (seconds[client], client))[: self.clients_per_round]
        if fastest:
            rank_zero_warn(
                f"No client within reach is predicted to make the deadline of {self.deadline:g} s: "
                f"the fastest {len(fastest)} take part, of which the first needs {seconds[fastest[0]]:.3g} s"
            )
        return fastest
