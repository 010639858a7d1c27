"""Clients with several tasks in a round: each model is trained as in a separate run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer

from hetfl import FedAvg, FederatedModule
from hetfl.aggregators import QFedAvg
from hetfl.clustering import Clustering
from hetfl.clustering.base import ClusterProbe
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.local import Executor, FedDyn, LocalTraining, Sequential, Stacked, Workers
from hetfl.selection import Uniform
from tests.conftest import small_levels, small_module

Fit = Callable[..., Trainer]


class TwoModels(Clustering):
    """Every client of a cohort trains two models, with a residual for each."""

    apart = True

    def __init__(self) -> None:
        super().__init__(2)

    def assign(self, round: int, cohort: Sequence[int], probe: ClusterProbe) -> None:
        for client in cohort:
            self.put(round, client, client % 2)

    def models_of(self, client: int, round: int) -> list[int]:
        return [0, 1]


def module(**changes: Any) -> FederatedModule:
    settings: dict[str, Any] = {"levels": small_levels(1.0), "selection": Uniform(4), "personal": ["classifier.bias"]}
    return small_module(FedAvg, uplink=ErrorFeedback(TopK(0.2)), **{**settings, **changes})


def table(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


@pytest.mark.filterwarnings("ignore:No client")
@pytest.mark.parametrize("executor", [Sequential, lambda: Workers(2), lambda: Stacked(8)])
def test_two_models_equal_the_models_of_two_runs(fit: Fit, tmp_path: Path, executor: Callable[[], Executor]) -> None:
    both = module(clustering=TwoModels(), executor=executor())
    alone = [module(executor=executor()) for _ in range(2)]
    alone[1].net.load_state_dict(both.models[1].state_dict())
    together = table(fit(both, rounds=4, name="both", limit_val_batches=0))
    apart = [table(fit(one, rounds=4, name=f"alone{k}", limit_val_batches=0)) for k, one in enumerate(alone)]
    for model, one in enumerate(alone):
        for name, value in one.net.state_dict().items():
            assert torch.allclose(both.models[model].state_dict()[name], value, rtol=0, atol=1e-6)
        for client in one.uplink.residuals.clients():
            kept = both.uplink.residuals.load(client + 12 * model)
            for name, block in one.uplink.residuals.load(client).items():
                assert torch.allclose(kept[name], block, rtol=0, atol=1e-6)
    for column in ("comm/up_bytes", "comm/down_bytes", "compute/flops_total"):
        assert together[column].tolist() == pytest.approx((apart[0][column] + apart[1][column]).tolist(), rel=0.01)


@pytest.mark.filterwarnings("ignore:No client")
def test_losses_are_requested_for_every_task(fit: Fit) -> None:
    """q-FedAvg needs the loss of each model before its training; no update is lost."""
    trainer = fit(module(clustering=TwoModels(), aggregator=QFedAvg(0.5)), rounds=2, limit_val_batches=0)
    assert table(trainer)["sim/failed"].tolist() == [0, 0]


def test_feddyn_is_refused_with_several_tasks(fit: Fit) -> None:
    local = LocalTraining(penalty=FedDyn(0.1))
    with pytest.raises(ConfigurationError, match="Expected clients that train one model each for FedDyn"):
        fit(module(clustering=TwoModels(), local=local), rounds=1)
