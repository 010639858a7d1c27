"""Nodes whose samples are token ids, tuples or dicts train the same model as one process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")

import torch
from lightning import Trainer

from hetfl import FederatedModule
from hetfl.selection import Uniform
from tests.conftest import small_levels, small_module
from tests.flower_cases import FakePost, federated, make_node, warned
from tests.tree_cases import FORMS, Given


@pytest.mark.parametrize("form", FORMS)
def test_nodes_train_on_token_tuple_and_dict_inputs(fit: Callable[..., Trainer], form: str, tmp_path: Path) -> None:
    make: Callable[[], FederatedModule] = partial(small_module, net=FORMS[form], levels=small_levels(1.0, 0.5))
    nodes = {
        number: make_node(clients, tmp_path / str(number), make, partial(Given, form))
        for number, clients in {11: range(3), 12: range(3, 6)}.items()
    }
    alone, together = make(), federated(make(), FakePost(nodes))
    for name, module in (("alone", alone), ("together", together)):
        fit(module, Given(form), rounds=2, name=name)
    for (name, expected), tensor in zip(alone.net.named_parameters(), together.net.parameters(), strict=True):
        assert torch.equal(tensor, expected), name


def test_silent_clients_are_reported_with_their_names_in_the_data(fit: Callable[..., Trainer], tmp_path: Path) -> None:
    names = ("ann", "bob", "cat", "dan", "eve", "fay")

    def make() -> FederatedModule:
        return small_module(selection=Uniform(6), net=FORMS["tokens"], levels=small_levels(1.0, 0.5))

    data = partial(Given, "tokens", names)
    nodes = {k: make_node([k], tmp_path / str(k), make, data) for k in range(6)}
    post = FakePost(nodes)
    post.tamper = lambda node, answer: None if node == 3 and "report.0" in answer else answer
    module = federated(make(), post)
    with warned(r"Round 1: no update of client 3 \('dan'\): "):
        fit(module, data(), rounds=1)
