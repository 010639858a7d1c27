"""What a selection policy is, and what it may ask before it selects."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from hetfl.errors import ConfigurationError
from hetfl.piece import Facts, Piece


class Probe(Protocol):
    """What a policy may ask of the round that begins; what an answer costs is charged to the round."""

    @property
    def clients(self) -> Sequence[int]:
        """The ids of the clients that can be reached, ascending."""
        ...

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the mean loss of the present global model, at each client's level, on its own training data.

        Args:
            clients: ids, each once.
            samples: of each client's data, drawn at random; None: all of it.
        """
        ...

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return the seconds that each client's round is predicted to take, transfers included; costs nothing."""
        ...


class Everyone:
    """The probe of a round that is only looked at: all clients can be reached, none computes anything.

    Args:
        num_clients: number of clients N.
    """

    def __init__(self, num_clients: int) -> None:
        self.clients = range(num_clients)

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"Expected a round that is run to ask {len(clients)} clients for losses but got a replay")

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"Expected a round that is run to predict {len(clients)} clients' seconds but got a replay")


class Selection(Piece):
    """Chooses the cohort of a round.

    Args:
        clients_per_round: size m of the cohort; with fewer clients within reach, all of these.
    """

    files: ClassVar[str] = "updates"
    replayable: ClassVar[bool] = False
    """Whether cohorts are functions of the seed and the round alone: nothing is learnt or asked."""
    by_size: ClassVar[bool] = False
    """Whether clients are drawn in proportion to their size: weighting their updates by it would count it twice."""

    def __init__(self, clients_per_round: int = 10) -> None:
        if clients_per_round < 1:
            raise ConfigurationError(f"Expected clients_per_round of at least 1 but got {clients_per_round}")
        self.clients_per_round = clients_per_round
        self.sizes: tuple[int, ...] = ()

    def setup(self, facts: Facts) -> None:
        """Learn the clients' training-set sizes and the seed.

        Raises:
            ConfigurationError: the cohort is larger than the fleet.
        """
        if self.clients_per_round > facts.num_clients:
            raise ConfigurationError(
                f"Expected clients_per_round of at most the number of clients, {facts.num_clients}, "
                f"but got {self.clients_per_round}"
            )
        self.sizes, self.seed = tuple(facts.sizes), facts.seed

    def check_weighting(self, by_size: bool) -> None:
        """Refuse updates that are weighted by size where clients are drawn by it: q-FFL's sampling says either or.

        Args:
            by_size: whether the aggregator weights an update by its client's number of samples.

        Raises:
            ConfigurationError: both do.
        """
        if by_size and self.by_size:
            raise ConfigurationError(
                f"Expected an aggregator that weights all updates alike, as {type(self).__name__} draws clients in "
                "proportion to their size, but got one that weights by size too: size would count twice; set "
                "model.aggregator to hetfl.aggregators.HolderMean"
            )

    @abstractmethod
    def select(self, round: int, probe: Probe) -> list[int]:
        """Return the ids of the round's cohort, each once, in the order in which their updates are aggregated."""

    def cohort(self, round: int, probe: Probe) -> list[int]:
        """Return what :meth:`select` does, once it is known to be a cohort.

        Raises:
            ConfigurationError: something in it is no client's id, cannot be reached, or is there twice.
        """
        chosen, name = self.select(round, probe), type(self).__name__
        try:
            ids = [operator.index(client) for client in chosen]
        except TypeError:
            got = type(chosen).__name__ if not isinstance(chosen, Iterable) else f"{chosen!r:.60}"
            raise ConfigurationError(f"Expected a list of clients' ids from {name}.select but got {got}") from None
        reach = probe.clients if isinstance(probe.clients, range) else set(probe.clients)
        for client, times in Counter(ids).items():
            if client not in reach:
                raise ConfigurationError(
                    f"Expected clients within reach, those of probe.clients, from {name}.select but got {client} in "
                    f"round {round}"
                )
            if times > 1:
                raise ConfigurationError(
                    f"Expected every client once from {name}.select but got {client} {times} times in round {round}"
                )
        return ids

    def weight(self, client: int) -> float:
        """Return what a client of the last selected cohort counts in :class:`~hetfl.aggregators.SelectionMean`."""
        return 1.0
