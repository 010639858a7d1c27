"""The check of the contract of part rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hetfl.levels.level_set import LevelSet
from hetfl.models import ConvNet
from hetfl.part import Part, part_of
from hetfl.parts import NOBODY, PartRule
from hetfl.parts.base import rise_within
from hetfl.piece import Facts
from hetfl.submodel import parameters_of
from hetfl.testing.rules import check_settings, factory, random, require, through_a_file
from hetfl.tree import Tree
from hetfl.types import Level, NetFactory, Report
from hetfl.updates import DenseUpdate

Question = tuple[str, int, int]
"""A level, a round and a client."""


def check_part_rule(
    rule: PartRule | Callable[[], PartRule],
    net: NetFactory | None = None,
    levels: Mapping[str, Level] | None = None,
    inputs: Tree | None = None,
) -> None:
    """Check that a part rule follows its contract.

    - Parts have the shapes of the net of their level. Positions rise and lie within the global tensors. The largest
      level holds all entries. Masks leave out only entries of trained parameters, and the rule declares them by
      ``masks``.
    - A part depends only on the seed, the level, the round, the client and the observed updates, not on earlier calls.
      The client ``NOBODY``, which stands for the level itself, has a part in every round.
    - The part that ``sent`` returns lies within the part, or within its index if clients train all of it. A saved and
      loaded state continues identically.

    Args:
        rule: an object, or a function that makes new objects.
        net: builds the net of a level; None: a ConvNet of 8 and 16 channels.
        levels: the levels; None: widths of 1, 1/2 and 1/4, the last with a density of 0.3 for a rule with masks.
        inputs: a few samples, in the form that the net takes, for rules that run it; None: images for the default net.

    Raises:
        AssertionError: a rule is broken; the message names the rule.
        ConfigurationError: a rule that every run checks is broken.
    """
    make = factory(rule, PartRule)
    check_settings(make())
    density = 0.3 if make().masks else 1.0
    default = {"a": Level("a"), "b": Level("b", 0.5), "c": Level("c", 0.25, density=density)}
    sizes = LevelSet(net or partial(ConvNet, hidden=(8, 16)), default if levels is None else levels, seed=0)
    sizes.samples = torch.rand(4, 1, 8, 8, generator=random(0)) if net is None and inputs is None else inputs
    questions = [(level, round, client) for level in sizes for round in (0, 1, 7) for client in (NOBODY, 0, 3)]
    drawn = _ready(make, sizes)
    first = {question: _checked(drawn, *question) for question in questions}
    other = _ready(make, sizes)
    for question in reversed(questions):
        alike = other.part(*question) == first[question]
        rule_ = f"a part that is a function of seed, level, round and client from {type(drawn).__name__}"
        require(alike, rule_, f"another one of {question} when it was asked for in another order")
    _check_state(make, sizes, questions)


def _ready(make: Callable[[], PartRule], levels: LevelSet, state: dict[str, Any] | None = None) -> PartRule:
    rule = make()
    rule.meet(levels, seed=3)
    parameters = parameters_of(levels.net)
    known: dict[str, Any] = {
        "levels": tuple(levels),
        "parameters": parameters,
        "masks": rule.masks,
        "held_out": (3,) * 4,
    }
    rule.setup(Facts((9,) * 4, seed=3, rounds=8, **known))
    if state is not None:
        rule.load_state_dict(state)
    rule.begin()
    return rule


def _checked(rule: PartRule, level: str, round: int, client: int) -> Part:
    name, levels = type(rule).__name__, rule.levels
    part = rule.part(level, round, client)
    require(isinstance(part, Part), f"a Part (hetfl.part) from {name}.part", type(part).__name__)
    whole = levels.whole.layout.shapes
    for tensor, entry in part.items():
        require(tensor in whole, f"tensors of the global model from {name}", repr(tensor))
        for of, positions in zip(whole[tensor], entry, strict=True):
            _check_positions(positions, of, f"{tensor!r} at level {level} from {name}")
    rule.check(part, level)
    if level == levels.largest:
        everything = part == levels.indices[level]
        require(everything, f"all entries at level {level}, the largest, from {name}", f"{part.size} of them")
    sent = rule.sent(part, level, round, client)
    trained = part.dense if rule.trains_all else part
    require(trained.covers(part_of(sent)), f"{name}.sent to be within the part", f"more at level {level}")
    return part


def _check_positions(positions: slice | Tensor, of: int, where: str) -> None:
    got = str(positions) if isinstance(positions, slice) else f"{positions.dtype} {positions.tolist()[:8]}"
    require(rise_within(positions, of), f"rising positions below {of} in {where}", got)


def _observed(rule: PartRule, round: int) -> None:
    rule.begin_round(round, 0.1)
    for client, level in enumerate(rule.levels):
        part = rule.part(level, round, client)
        vector = torch.randn(part.size, generator=random(10 * round + client))
        rule.observe(DenseUpdate(vector), part, Report(client, level, 9, 0.5, lr=0.1))
    rule.end_round(round)


def _check_state(make: Callable[[], PartRule], levels: LevelSet, questions: list[Question]) -> None:
    first = _ready(make, levels)
    for round in range(2):
        _observed(first, round)
    name = type(first).__name__
    again = _ready(make, levels, through_a_file(first.state_dict(), name))
    for level, round, client in questions:
        alike = again.part(level, round + 2, client) == first.part(level, round + 2, client)
        require(alike, f"{name} to continue from a saved state as without saving", f"another part at level {level}")
