"""The base class of selection policies, and the questions that a policy may ask before it selects."""

from __future__ import annotations

import operator
from abc import abstractmethod
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from hetfl.arguments import whole
from hetfl.errors import ConfigurationError
from hetfl.piece import Facts, Piece


class Probe(Protocol):
    """The questions that a policy may ask clients in a round that begins; the round is charged for the answers."""

    @property
    def clients(self) -> Sequence[int]:
        """The ids of the reachable clients, ascending."""
        ...

    def level(self, client: int) -> str:
        """Return the name of a client's level in the round; this has no cost."""
        ...

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Return the mean loss of the present global model, at each client's level, on its own training data.

        Args:
            clients: ids, each once.
            samples: number of each client's samples, drawn at random; None: all.
        """
        ...

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Return the predicted seconds of each client's round, transfers included; this has no cost."""
        ...


class Everyone:
    """The probe for a replay of a round without training: all clients are reachable, and none can be asked.

    Args:
        num_clients: number of clients N.
    """

    def __init__(self, num_clients: int) -> None:
        self.clients = range(num_clients)

    def level(self, client: int) -> str:
        """Refuse to name a level.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"Expected a real round to ask for the level of client {client} but got a replay")

    def losses(self, clients: Sequence[int], samples: int | None = None) -> list[float]:
        """Refuse to ask clients.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"Expected a real round to ask {len(clients)} clients for losses but got a replay")

    def seconds(self, clients: Sequence[int]) -> list[float]:
        """Refuse to predict seconds.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(f"Expected a real round to predict {len(clients)} clients' seconds but got a replay")


class Selection(Piece):
    """Chooses the cohort of a round.

    Args:
        clients_per_round: size m of the cohort; with fewer reachable clients, all of these.
    """

    files: ClassVar[str] = "updates"
    replayable: ClassVar[bool] = False
    """Whether cohorts are functions of only the seed, the round and the reachable clients: a policy asks nothing."""
    by_size: ClassVar[bool] = False
    """Whether clients are drawn in proportion to their size; updates must then not be weighted by size again."""

    asks_losses: bool = False
    """Whether clients are asked for their losses before they train."""

    def __init__(self, clients_per_round: int = 10) -> None:
        if whole("clients_per_round", clients_per_round) < 1:
            raise ConfigurationError(f"Expected clients_per_round of at least 1 but got {clients_per_round}")
        self.clients_per_round = clients_per_round
        self.sizes: tuple[int, ...] = ()

    def setup(self, facts: Facts) -> None:
        """Set the clients' training-set sizes and the seed.

        Raises:
            ConfigurationError: the cohort is larger than the number of clients.
        """
        if self.clients_per_round > facts.num_clients:
            raise ConfigurationError(
                f"Expected clients_per_round of at most the number of clients, {facts.num_clients}, "
                f"but got {self.clients_per_round}"
            )
        self.sizes, self.seed = tuple(facts.sizes), facts.seed

    def check_weighting(self, by_size: bool) -> None:
        """Refuse an aggregator that weights by size if clients are already drawn in proportion to size.

        Args:
            by_size: whether the aggregator weights an update by its client's number of samples.

        Raises:
            ConfigurationError: both use the size.
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
        """Return the cohort that :meth:`select` chooses, after a check.

        Raises:
            ConfigurationError: an entry is no client's id, or its client is not reachable or is repeated.
        """
        chosen, name = self.select(round, probe), type(self).__name__
        try:
            ids = [operator.index(client) for client in chosen]
        except TypeError:
            got = type(chosen).__name__ if not isinstance(chosen, Iterable) else f"{chosen!r:.60}"
            raise ConfigurationError(f"Expected a list of clients' ids from {name}.select but got {got}") from None
        for client, times in Counter(ids).items():
            if not _has(probe.clients, client):
                raise ConfigurationError(
                    f"Expected clients within reach, those of probe.clients, from {name}.select but got {client} in "
                    f"round {round + 1}"
                )
            if times > 1:
                raise ConfigurationError(
                    f"Expected every client once from {name}.select but got {client} {times} times in round {round + 1}"
                )
        return ids

    def weight(self, client: int) -> float:
        """Return the weight of a client of the last cohort in :class:`~hetfl.aggregators.SelectionMean`."""
        return 1.0


def _has(clients: Sequence[int], client: int) -> bool:
    """Return whether a client is among others, whose ids are ascending; a set of many ids would take longer."""
    place = bisect_left(clients, client)
    return place < len(clients) and clients[place] == client
