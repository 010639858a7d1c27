"""FLTrust: the oracle on slices, NumPy's definition, the server's training, hostile clients and resuming in runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.optim import SGD

from hetfl import FedAvg, Level
from hetfl.aggregators import FLTrust
from hetfl.errors import ConfigurationError
from hetfl.hooks import Hook
from hetfl.local import LocalTraining
from hetfl.part import Part
from hetfl.piece import Facts, Piece
from hetfl.selection import Uniform
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from tests.conftest import small_data, small_module
from tests.robust_cases import SHAPES, cohort, played, spread

Fit = Callable[..., Trainer]


def trusting(root: Mapping[str, Tensor]) -> FLTrust:
    aggregator = FLTrust()
    aggregator.setup(Facts(server_training=lambda round, lr, epochs, model: root))
    aggregator.begin_round(0, 0.1)
    return aggregator


def test_slices_are_compared_with_the_slices_of_the_servers_update() -> None:
    """The server's update is (1, 1, 1, 1); those of clients are (2, 2), (−1, 0, 0, 0) and (0, 3, 0, 0)."""
    aggregator = trusting({"w": torch.ones(4, dtype=torch.float64)})
    aggregator.reset({"w": torch.zeros(4, dtype=torch.float64)})
    for client, values in enumerate(([2.0, 2.0], [-1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0])):
        update = DenseUpdate(torch.tensor(values, dtype=torch.float64))
        aggregator.update(update, Part({"w": (slice(0, len(values)),)}), Report(client, "a", 1, 0.0))
    steps, holders = aggregator.compute()
    assert np.round(steps["w"].numpy(), 4).tolist() == [0.6667, 1.3333, 0.0, 0.0]
    assert holders["w"].tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5])
    assert aggregator.columns() == {"defence/trusted": 2.0}


@pytest.mark.parametrize("options", [{}, {"positions": True}, {"masked": True}])
def test_every_entry_is_the_trusted_mean_of_numpy(options: dict[str, bool]) -> None:
    clients = cohort("abcabcab", seed=3, **options)
    random = torch.Generator().manual_seed(9)
    root = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in SHAPES.items()}
    values, total = spread(clients), {name: np.zeros(shape) for name, shape in SHAPES.items()}
    weight = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for k in range(len(clients)):
        held = {name: ~np.isnan(values[name][k]) for name in SHAPES}
        trained = [name for name in SHAPES if name != "running_mean"]
        u = np.concatenate([values[name][k][held[name]].ravel() for name in trained])
        g = np.concatenate([root[name].numpy()[held[name]].ravel() for name in trained])
        trust = max(0.0, float(u @ g / np.linalg.norm(u) / np.linalg.norm(g)))
        exact, own = values["running_mean"][k][held["running_mean"]], root["running_mean"].numpy()[held["running_mean"]]
        factors = dict.fromkeys(trained, np.linalg.norm(g) / np.linalg.norm(u))
        factors["running_mean"] = np.minimum(1.0, np.linalg.norm(own) / np.linalg.norm(exact))
        for name in SHAPES:
            total[name][held[name]] += trust * factors[name] * values[name][k][held[name]]
            weight[name][held[name]] += trust
    steps, holders = played(trusting(root), clients)
    assert 0 < weight["scale"] < len(clients)
    for name in SHAPES:
        assert np.allclose(holders[name], weight[name], atol=1e-12)
        assert np.allclose(steps[name], total[name] / np.where(weight[name] > 0, weight[name], 1.0), atol=1e-12)


def test_without_a_trusted_client_nothing_moves() -> None:
    steps, holders = played(trusting({name: torch.zeros(shape) for name, shape in SHAPES.items()}), cohort("abc"))
    assert not any(values.any() for values in (*steps.values(), *holders.values()))


class Turned(Hook):
    """Two of twelve clients turn their vectors and make them longer."""

    def on_delta(self, p_D: Tensor, ctx: Any) -> Tensor:
        return -5.0 * p_D if ctx.client in (3, 7) else p_D


@pytest.mark.filterwarnings("ignore:.*the median update's largest one.*")
def test_two_hostile_clients_of_twelve_do_not_ruin_a_run(fit: Fit) -> None:
    local = LocalTraining(2, 10, 1.0, lambda p: SGD(p, 0.1, 0.9))
    settings: dict[str, Any] = {"selection": Uniform(12), "local": local, "levels": {"a": Level("a")}}
    module = small_module(aggregator=FLTrust(epochs=1), hooks=[Turned()], **settings)
    trainer = fit(module, small_data(server_fraction=0.2), rounds=8, check_val_every_n_epoch=8)
    assert float(trainer.callback_metrics["val/accuracy"]) > 0.45
    assert 0 < float(trainer.callback_metrics["defence/trusted"]) <= 10


def test_a_resumed_run_has_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    whole, first, second = (small_module(aggregator=FLTrust()) for _ in range(3))
    data = small_data(server_fraction=0.2)
    fit(whole, data, rounds=3, name="whole", limit_val_batches=0)
    fit(first, data, rounds=1, name="begun", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, data, rounds=3, name="resumed", limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


class Root(Piece):
    """Keeps the server's training of each round."""

    reads_server_data = True

    def setup(self, facts: Facts) -> None:
        assert facts.server_training is not None
        self.training, self.seen = facts.server_training, list[Mapping[str, Tensor]]()

    def begin_round(self, round: int, lr: float) -> None:
        self.seen.append(self.training(round, lr, None, 0))


def test_the_server_trains_as_clients_do_and_changes_nothing(fit: Fit) -> None:
    runs = []
    for watched in (True, False):
        federated = small_module(FedAvg, levels={"a": Level("a")})
        if watched:
            federated.root = Root()  # type: ignore[assignment]
        before = {name: tensor.detach().clone() for name, tensor in federated.net.named_parameters()}
        fit(federated, small_data(server_fraction=0.2), rounds=2, name=str(watched), limit_val_batches=0)
        runs.append(federated)
    for one, other in zip(*(run.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)
    seen: list[Mapping[str, Tensor]] = runs[0].pieces["root"].seen  # type: ignore[attr-defined]
    moved = torch.cat([seen[0][name].flatten() for name in before])
    again = torch.cat([seen[1][name].flatten() for name in before])
    assert 0.01 < float(moved.norm()) < 10
    assert not torch.equal(moved, again)


def test_a_run_without_server_data_is_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="data.server_fraction above 0 for FLTrust"):
        fit(small_module(aggregator=FLTrust()), small_data(), rounds=1)


def test_epochs_below_one_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="epochs of at least 1 or null for FLTrust but got 0"):
        FLTrust(0)
