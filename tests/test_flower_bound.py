"""The server's bound for updates of Flower nodes: on without a setting, it names hostile clients and never freezes."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import pandas as pd
import torch
from flwr.app import ArrayRecord, RecordDict
from lightning import Trainer
from torch.optim import SGD

from hetfl import FederatedModule, Level, wire
from hetfl.errors import RefusedUpdate
from hetfl.flower.bound import FACTOR, ServerBound
from hetfl.flower.records import VALUES
from hetfl.hooks import ClipDelta, Hooks, MedianBound, NormBound
from hetfl.local import LocalTraining
from hetfl.local.penalty import NoPenalty
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.selection import Uniform
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.conftest import fit_in, small_data, small_module
from tests.flower_cases import FakePost, federated, make_node

Fit = Callable[..., Trainer]
NODES = {1: (0, 1, 2), 2: (3,), 3: (4, 5, 6), 4: (7,), 5: (8, 9), 6: (10, 11)}
HOSTILE = {2: 3, 4: 7}
"""The only client of each hostile node."""
ROUNDS = 8


def make() -> FederatedModule:
    local = LocalTraining(2, 10, 1.0, lambda p: SGD(p, 0.1, 0.9))
    return small_module(selection=Uniform(12), levels={"a": Level("a")}, local=local)


def times(factor: float) -> Callable[[int, RecordDict], RecordDict]:
    """Return a function that multiplies the update of a hostile node's client."""

    def tamper(node: int, answer: RecordDict) -> RecordDict:
        record = answer.get("bytes.0")
        if node not in HOSTILE or not isinstance(record, ArrayRecord):
            return answer
        honest = bytes(record[VALUES].data)
        header = wire.header.unpack(honest)
        update = wire.decode(honest, wire.Expected(header.round, header.client, header.size))
        changed = DenseUpdate(update.to_dense() * factor)
        record[VALUES].data = wire.encode(changed, round=header.round, client=header.client)
        return answer

    return tamper


def run(fit: Fit, folder: Path, factor: float, bound: ServerBound) -> tuple[float, pd.DataFrame, list[str]]:
    """Return the final accuracy, the rounds and the warnings of a run with two hostile nodes of six."""
    nodes = {node: make_node(clients, folder / f"{factor}" / str(node), make) for node, clients in NODES.items()}
    post = FakePost(nodes)
    post.tamper = times(factor)
    module = federated(make(), post)
    module.hooks.append(bound)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(module, small_data(), rounds=ROUNDS, name=f"x{factor}", check_val_every_n_epoch=ROUNDS)
    rows = pd.read_csv(Path(str(trainer.log_dir), "metrics.csv"))
    return float(rows["val/accuracy"].iloc[-1]), rows, [str(each.message) for each in caught]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> float:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("honest")
    accuracy, rows, _ = run(fit_in(folder), folder, 1.0, ServerBound(None))
    assert rows["defence/bounded"].tolist() == [0.0] * ROUNDS
    return accuracy


@pytest.mark.parametrize("factor", [10.0, -5.5, 1e30])
def test_two_hostile_nodes_of_six_are_bounded_and_named(fit: Fit, tmp_path: Path, honest: float, factor: float) -> None:
    accuracy, rows, texts = run(fit, tmp_path, factor, ServerBound(None))
    assert len(rows) == ROUNDS
    assert accuracy > honest - 0.12
    assert rows["comm/refused"].sum() >= 2 * ROUNDS - 3
    for client in HOSTILE.values():
        assert any(re.search(rf"Round {ROUNDS}: update of client {client} .*refused: ", text) for text in texts)
    if factor < 1e19:  # larger entries are refused before any hook
        assert (rows["defence/bounded"] >= 2).all()


def taken(bound: ServerBound, norm: float, client: int = 0) -> bool:
    """Return whether an update of some norm is taken whole."""
    update = DenseUpdate(torch.full((4,), norm / 2.0, dtype=torch.float64))
    try:
        return bound.on_update(update, Part({"w": (slice(0, 4),)}), Report(client, "a", 1, 0.0)) is update
    except RefusedUpdate:
        return False


def test_a_bound_that_follows_never_stops_honest_training() -> None:
    """A constant bound of 2 refuses all updates that grow beyond it."""
    follows, constant = ServerBound(None), ServerBound(2.0)
    follows.setup(Facts(parameters={"w": torch.full((1,), 9.0)}))
    norms = [1.0 + 0.1 * number for number in range(60)]
    assert all(taken(follows, norm) for norm in norms)
    assert [taken(constant, norm) for norm in norms].count(True) == 11
    assert not taken(follows, 2 * FACTOR * norms[-1])


def test_a_bound_of_the_users_replaces_the_one_that_follows() -> None:
    def beside(*hooks: NormBound | ClipDelta) -> ServerBound:
        return ServerBound.beside(Hooks(NoPenalty(), hooks), None)

    assert beside().follows
    assert beside(ClipDelta(1.0)).follows
    assert not beside(NormBound(3.0)).follows
    assert not beside(MedianBound()).follows
    assert not ServerBound.beside(Hooks(NoPenalty()), math.inf).follows


def test_the_state_of_a_bound_goes_on_and_may_be_missing() -> None:
    first, second = ServerBound(None), ServerBound(None)
    for number in range(6):
        taken(first, 1.0 + number)
    second.load_state_dict(first.state_dict())
    assert second.following.usual("a") == first.following.usual("a") == 1.75
    second.load_state_dict({})
    assert second.following.usual("a") is None
