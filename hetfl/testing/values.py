"""The check of the contract of measures of value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.question import ClientView, Question
from hetfl.testing.rules import check_settings, factory, random, require, same, through_a_file
from hetfl.types import Report
from hetfl.updates import DenseUpdate, Update
from hetfl.value import Value

SIZES = (30, 5, 80, 12, 7, 50)
"""Number of training samples of each client."""
COHORTS = ((0, 1, 2, 3), (3, 1), (), (2, 0, 3, 1))
"""The clients of each round; clients 4 and 5 never report."""
INPUTS, CLASSES, ENTRIES = 6, 3, 8


class DataProbe:
    """A probe whose clients answer from random data that depends only on the client.

    Attributes:
        clients: all ids.
        asked: the ids that were asked, in their order.
    """

    def __init__(self) -> None:
        self.clients: Sequence[int] = range(len(SIZES))
        self.asked: list[int] = []

    def answers(self, clients: Sequence[int], question: Question) -> dict[int, Tensor]:
        """Return the answers of clients."""
        self.asked += clients
        with torch.set_grad_enabled(question.backward):
            return {client: question.answer(self.view(client)) for client in clients}

    def view(self, client: int) -> ClientView:
        """Return the data and the net of a client."""
        draw, net = random(client), nn.Linear(INPUTS, CLASSES)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random(99)))
        inputs = torch.randn(SIZES[client], INPUTS, generator=draw) + 0.3 * client
        targets = torch.randint(CLASSES, (SIZES[client],), generator=draw)

        def gradient(loss: Tensor) -> Tensor:
            return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(net.parameters()))])

        return ClientView([(inputs, targets)], CLASSES, random(7), net, gradient)


class Samples:
    """Server data; measures read it through the utility."""

    def __len__(self) -> int:
        return 10

    def batch(self, positions: Tensor) -> tuple[Any, Tensor]:
        """Return zeros."""
        return torch.zeros(len(positions), INPUTS), torch.zeros(len(positions), dtype=torch.int64)


def facts() -> Facts:
    """Return the facts of a federation of six clients, with a score that is best at one model."""

    def utility(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        loss = float((tensors["w"].double() - 0.5).square().sum())
        return 1.0 / (1.0 + loss), loss

    parameters = {"w": torch.linspace(-1, 1, ENTRIES)}
    return Facts(SIZES, 3, ("a", "b"), 9, parameters, server_data=Samples(), utility=utility)


def check_value(value: Value | Callable[[], Value]) -> None:
    """Check that a measure follows its contract, in a federation of six clients whose parts have two sizes.

    - Values are finite numbers of clients of the federation, also in a round without updates; a client that never
      reports has no value or a finite one.
    - Values do not depend on the order of a round's updates, and asking twice gives the same.
    - Clients are asked only by a measure with ``asks_clients``, and only those of the cohort.
    - A saved and loaded state continues identically.

    Args:
        value: an object, or a function that makes new objects.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
    """
    make = factory(value, Value)
    check_settings(make())
    whole = [_played(each, round) for each in [_ready(make)] for round in range(len(COHORTS))]
    turned = [_played(each, round, turned=True) for each in [_ready(make)] for round in range(len(COHORTS))]
    name = type(make()).__name__
    for round, (one, other) in enumerate(zip(whole, turned, strict=True)):
        near = one.keys() == other.keys() and all(abs(one[k] - other[k]) <= 1e-6 * (1 + abs(one[k])) for k in one)
        require(near, f"values from {name} that do not depend on the order of updates", (round, one, other))
    require(any(whole), f"a value of a client from {name} in {len(COHORTS)} rounds", whole)
    begun, resumed = _ready(make), make()
    for round in range(2):
        _played(begun, round)
    resumed.setup(facts())
    resumed.load_state_dict(through_a_file(begun.state_dict(), name))
    resumed.begin()
    later = [_played(resumed, round) for round in range(2, len(COHORTS))]
    require(same(whole[2:], later), f"the same values from {name} after its state was loaded", (whole[2:], later))


def _ready(make: Callable[[], Value]) -> Value:
    value = make()
    value.setup(facts())
    value.begin()
    return value


def _played(value: Value, round: int, turned: bool = False) -> dict[int, float]:
    """Play a round, and return its values."""
    name, probe, cohort = type(value).__name__, DataProbe(), COHORTS[round]
    value.begin_round(round, 0.1)
    value.inquire(round, cohort, probe)
    allowed = set(cohort) if value.asks_clients else set()
    require(set(probe.asked) <= allowed, f"questions from {name} to {sorted(allowed)} alone", probe.asked)
    for client in reversed(cohort) if turned else cohort:
        update, part, report = _update(client, round)
        given = update.to_dense().clone()
        value.observe(update, part, report)
        require(same(given, update.to_dense()), f"no change of an update by {name}", update.to_dense())
    values = dict(value.of_round())
    for client, number in values.items():
        known = client in range(len(SIZES)) and isinstance(number, float) and abs(number) < float("inf")
        require(known, f"finite numbers of clients from {name}", (client, number))
    require(dict(value.of_round()) == values, f"the same values from {name} when it is asked again", values)
    require(values in [dict(each) for each in value.client_values().values()], f"client_values of {name}", values)
    value.end_round(round)
    return values


def _update(client: int, round: int) -> tuple[Update, Part, Report]:
    """Return a client's update: odd clients hold the first half of the entries."""
    held = ENTRIES // 2 if client % 2 else ENTRIES
    vector = torch.randn(held, generator=random(10 * round + client))
    report = Report(client, "b" if client % 2 else "a", SIZES[client], loss=1.0 / (1 + round + client))
    return DenseUpdate(vector), Part({"w": (slice(0, held),)}), replace(report, initial_loss=0.7)
