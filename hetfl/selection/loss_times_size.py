"""Selection by the product of loss and size."""

from __future__ import annotations

from hetfl.arguments import real, whole
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection.base import Probe, Selection
from hetfl.selection.draw import highest, uniformly


class LossTimesSize(Selection):
    r"""The m clients with the highest score :math:`F_k(\theta_t)\, n_k^\beta`, the highest first, ties by id.

    With β = 1 a score is the sum of a client's losses over its samples, which is its share of the global objective
    :math:`\sum_k n_k F_k`. With β = 0 it is the client's mean loss, so that the clients with the worst model come
    first. Other β are in between. The statistical utility of Oort (Lai et al., OSDI 2021, arXiv 2010.06081) is β = 1
    with a root mean square in place of the mean.

    The choice is greedy: if all clients are asked, the same few may take part in every round, and clients with a small
    loss never do. ``candidates`` adds randomness: only d clients, drawn uniformly, are asked.
    (:class:`~hetfl.selection.PowerOfChoice` draws its candidates by size and ranks them by loss; here the size is in
    the score.) The downloads and passes of the asked clients are charged to the round. A loss of NaN, of a diverged
    model, counts as ∞.

    Args:
        clients_per_round: size m of the cohort; with fewer reachable clients, all of these.
        beta: exponent β of the size, at least 0.
        candidates: number d of clients that are drawn and asked, from m to N; None: all reachable clients.

    Raises:
        ConfigurationError: β is negative, or d is below m.
    """

    asks_losses = True

    def __init__(self, clients_per_round: int = 10, beta: float = 1.0, candidates: int | None = None) -> None:
        super().__init__(clients_per_round)
        if not 0 <= real("beta", beta) < float("inf"):
            raise ConfigurationError(f"Expected a finite beta of at least 0 but got {beta}")
        if candidates is not None and whole("candidates", candidates) < clients_per_round:
            raise ConfigurationError(
                f"Expected candidates of at least clients_per_round, {clients_per_round}, or null but got {candidates}"
            )
        self.beta, self.candidates = beta, candidates

    def setup(self, facts: Facts) -> None:
        """Set the clients' training-set sizes and the seed.

        Raises:
            ConfigurationError: there are more candidates than clients.
        """
        super().setup(facts)
        if self.candidates is not None and self.candidates > facts.num_clients:
            raise ConfigurationError(
                f"Expected candidates of at most the number of clients, {facts.num_clients}, but got {self.candidates}"
            )

    def select(self, round: int, probe: Probe) -> list[int]:  # noqa: D102
        asked = list(probe.clients)
        if self.candidates is not None:
            asked = uniformly(asked, self.candidates, generator(self.seed, "selection", round))
        if len(asked) <= self.clients_per_round:
            return asked  # all take part, so no losses are needed
        losses = probe.losses(asked)
        scores = {k: loss * self.sizes[k] ** self.beta for k, loss in zip(asked, losses, strict=True)}
        return highest(scores, self.clients_per_round)
