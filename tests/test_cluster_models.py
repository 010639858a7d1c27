"""Models that are replaced during a run: the state that a copy has, and where its noise is added."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hetfl.clustering import IFCA, NewModel
from hetfl.submodel import state_of
from tests.conftest import small_net
from tests.test_cluster_runs import Fit, adam, grouped, module

pytestmark = pytest.mark.filterwarnings("ignore:IFCA", "ignore:All clients")


def test_restarted_models_copy_the_optimizer_state_of_the_chosen_model(fit: Fit) -> None:
    tested = module(IFCA(2, restarts=1), server_optimizer=adam)
    tested.models[1].load_state_dict(tested.net.state_dict())
    server = fit(tested, grouped(), rounds=3, limit_val_batches=0).optimizers[0]
    assert isinstance(tested.clustering, IFCA)
    assert tested.clustering.restarted == 1
    for winner, other in zip(tested.net.parameters(), tested.models[1].parameters(), strict=True):
        assert server.state[winner]["step"] == server.state[other]["step"] == 3.0
        for key in ("exp_avg", "exp_avg_sq"):
            assert server.state[winner][key].any()
            assert torch.equal(server.state[winner][key], server.state[other][key])
        assert not torch.equal(winner, other)


def test_jitter_on_a_copied_model_does_not_change_running_statistics(fit: Fit) -> None:
    tested = module(IFCA(2), net=partial(small_net, norm="batch"))
    server = fit(tested, grouped(), rounds=1, limit_val_batches=0).optimizers[0]
    tested.hosting.renew([NewModel(1, 0, jitter=0.5)], server, 1, seed=0)
    source, copy = state_of(tested.net), state_of(tested.models[1])
    trained = set(dict(tested.net.named_parameters()))
    assert source.keys() - trained
    for name, value in source.items():
        assert torch.equal(value, copy[name]) == (name not in trained), name
