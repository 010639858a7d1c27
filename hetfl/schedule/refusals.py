"""What schedules without common rounds do not work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, cast

from hetfl.aggregators.per_model import Aggregators
from hetfl.clustering import Clustering, OneCluster
from hetfl.errors import ConfigurationError
from hetfl.fleet import LearningAssignment
from hetfl.local import Penalty
from hetfl.piece import Piece
from hetfl.selection import Selection


class _Rule(Protocol):
    asks_gradients: bool


class _Clients(Protocol):
    states_wait: bool
    arrives: bool


def check_pieces(schedule: str, pieces: Mapping[str, Piece]) -> None:
    """Refuse pieces of a run whose rules need that all clients of a round begin with one model.

    Args:
        schedule: name of the schedule, for messages.
        pieces: by name.

    Raises:
        ConfigurationError: names the first one.
    """
    for expected, got in (*_of_policies(pieces), *_of_aggregation(pieces)):
        raise ConfigurationError(f"Expected {expected} with the schedule {schedule} but got {got}")


def _of_policies(pieces: Mapping[str, Piece]) -> Iterator[tuple[str, str]]:
    """Yield what is expected of a policy, and the policy that is not so."""
    clustering = cast(Clustering, pieces["clustering"])
    if not isinstance(clustering, OneCluster):
        yield "one global model", f"{_name(clustering)}, whose clusters need updates or losses of a common model"
    if isinstance(assignment := pieces["assignment"], LearningAssignment):
        yield "an assignment that does not learn", f"{_name(assignment)}, which books the rewards of a round's cohort"
    selection = cast(Selection, pieces["selection"])
    if selection.asks_losses:
        yield "a selection that asks for no losses", f"{_name(selection)}, which asks clients before they train"
    rule = pieces["parts"]
    if cast(_Rule, rule).asks_gradients:
        yield "a part rule that asks for no gradients", f"{_name(rule)}, which asks a round's cohort"
    learning = [each for each in (rule, *rule.members().values()) if type(each).observe is not Piece.observe]
    for each in learning[:1]:
        yield "a part rule that does not learn", f"{_name(each)}, which reads updates as those of the present parts"


def _of_aggregation(pieces: Mapping[str, Piece]) -> Iterator[tuple[str, str]]:
    """Yield what is expected of another piece, and the piece that is not so."""
    penalty, aggregator = cast(Penalty, pieces["penalty"]), cast(Aggregators, pieces["aggregator"])
    if penalty.memories is not None:
        yield "a penalty without memories", f"{_name(penalty)}, whose memories refer to a common model"
    if aggregator.first.asks_losses:
        yield "an aggregator that asks for no losses", f"{aggregator.describe()}, which asks clients before they train"
    if not aggregator.first.takes_stale:
        yield "an aggregator that takes stale updates", f"{_name(aggregator.first)}, which needs a common model"
    for piece in pieces.values():
        if piece.asks_clients:
            yield "no questions to clients before they train", piece.describe()
    clients = cast(_Clients, pieces["clients"])
    if not clients.states_wait and not clients.arrives:
        yield "clients in the trainer's only process or on Flower", _name(pieces["clients"])


def _name(piece: Piece) -> str:
    return type(piece).__name__
