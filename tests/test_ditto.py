"""Ditto: both models of every client against NumPy, the personal score, a resume, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch.nn.functional import cross_entropy

from hetfl import FedAvg
from hetfl.aggregators import QFedAvg, SampleMean
from hetfl.errors import ConfigurationError
from hetfl.local import Stacked
from hetfl.methods import Ditto
from hetfl.selection import Uniform
from hetfl.types import Report
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.reference.cases import Scripted
from tests.reference.given import made_data
from tests.relative_cases import LR, SIZES, STEPS, delta, federation
from tests.sparse_cases import Tensors, client_arrays, gradient, values_of

Fit = Callable[..., Trainer]
running = partial(small_net, norm="batch")


@pytest.mark.usefixtures("double_precision")
def test_both_models_equal_numpy(fit: Fit) -> None:
    """Client 3 takes no part in the first round, and client 0 none after it."""
    cohorts, mu = [[0, 1, 2], [1, 2, 3], [3, 1, 2]], 0.4
    module = federation(Ditto, proximal_mu=mu, selection=Scripted(*cohorts))
    data = made_data(SIZES, (6,), 3)
    shared = {name.removeprefix("shared."): value for name, value in values_of(module.net.shared).items()}
    first = dict(shared)
    own: list[Tensors] = [dict(first) for _ in SIZES]
    fit(module, data, rounds=len(cohorts), precision="64-true")
    for cohort in cohorts:
        moves, sizes = [], []
        for client in cohort:
            arrays = client_arrays(data, client)
            for _ in range(STEPS):
                slopes = gradient(own[client], *arrays)
                own[client] = {
                    name: value - LR * (slopes[name] + mu * (value - shared[name]))
                    for name, value in own[client].items()
                }
            moves.append(delta(shared, arrays))
            sizes.append(len(arrays[1]))
        shared = {
            name: value + sum(n * move[name] for n, move in zip(sizes, moves, strict=True)) / sum(sizes)
            for name, value in shared.items()
        }
    for name, value in values_of(module.net.shared).items():
        np.testing.assert_allclose(value, shared[name], rtol=1e-9, atol=1e-12)
    for client in range(4):
        kept = module.personal.store.load(client)
        for name, value in own[client].items():
            np.testing.assert_allclose(kept[f"own.{name}"].numpy(), value - first[name], rtol=1e-9, atol=1e-12)
        assert float(kept["trained"]) == 1.0


def test_the_global_model_is_that_of_fedavg_and_own_models_are_better(fit: Fit) -> None:
    plain = small_module(FedAvg, net=running, levels=small_levels(1.0), aggregator=SampleMean(), selection=Uniform(12))
    ditto = small_module(Ditto, net=running, levels=None, selection=Uniform(12))
    for module in (plain, ditto):  # clipping would couple the two models
        object.__setattr__(module.local, "gradient_clip", None)
    expected = fit(plain, rounds=4, name="plain").callback_metrics
    columns = fit(ditto, rounds=4, name="ditto").callback_metrics
    assert float(columns["val/accuracy"]) == pytest.approx(float(expected["val/accuracy"]), abs=0.02)
    assert float(columns["local/personal_accuracy"]) > float(columns["local/accuracy_mean"]) + 0.1
    assert torch.equal(columns["comm/down_bytes_total"], expected["comm/down_bytes_total"])
    assert torch.equal(columns["comm/up_bytes_total"], expected["comm/up_bytes_total"])


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_clients_are_asked_for_the_loss_of_the_global_model(fit: Fit, norm: str) -> None:
    """Their own models, trained for two rounds, have other losses."""
    data, seen = small_data(), list[tuple[float, float]]()

    class Noting(QFedAvg):
        def update(self, update: Any, index: Any, report: Report) -> None:
            of_client = data.client_data(report.client)
            outputs = copy.deepcopy(module.net.shared).train()(data.transform.eval(of_client.inputs))
            seen.append((report.initial_loss or 0.0, cross_entropy(outputs, of_client.targets).item()))
            super().update(update, index, report)

    settings: dict[str, Any] = {"levels": None, "selection": Uniform(12), "aggregator": Noting(1.0)}
    module: Any = small_module(Ditto, net=partial(small_net, norm=norm), **settings)
    fit(module, data, rounds=3, limit_val_batches=0)
    asked, expected = zip(*seen, strict=True)
    assert len(asked) == 36
    assert asked == pytest.approx(expected, rel=1e-4)


def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    def module() -> Any:
        return small_module(Ditto, net=running, levels=small_levels(1.0, 0.5))

    whole, first, again = module(), module(), module()
    trainer = fit(whole, rounds=3, name="whole")
    fit(first, rounds=1, name="first").save_checkpoint(tmp_path / "one.ckpt")
    resumed = fit(again, rounds=3, name="again", ckpt=str(tmp_path / "one.ckpt"))
    for p, q in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(p, q)
    for name in ("local/personal_accuracy", "val/accuracy"):
        assert torch.equal(trainer.callback_metrics[name], resumed.callback_metrics[name])


def test_what_it_refuses(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"without static norms for Ditto.* but got 'blocks\.0\.norm': set"):
        small_module(Ditto)
    with pytest.raises(ConfigurationError, match="no personal tensors for Ditto, which has its own, but got"):
        small_module(Ditto, net=running, personal=["classifier.*"])
    with pytest.raises(ConfigurationError, match=r"proximal_mu in \[0, 1e\+06\] for Ditto but got -1"):
        small_module(Ditto, net=running, proximal_mu=-1.0)
    with pytest.raises(ConfigurationError, match=r"for executor Stacked but got Ditto\."):
        fit(small_module(Ditto, net=running, executor=Stacked(2)), rounds=1)
