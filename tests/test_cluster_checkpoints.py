"""Checkpoints with more global models than configured: evaluated, trained further, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch.optim import SGD

from hetfl import FederatedModule
from hetfl.clustering import IFCA, ClusteredFL, Clustering, OneCluster
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import FederatedDataModule
from hetfl.errors import ConfigurationError
from hetfl.selection import Everyone, Uniform
from tests.conftest import fit_in, small_data, small_net
from tests.test_cluster_runs import LONGER, Fit, grouped, module, rows, splitting, values

Make = Callable[[Clustering | None], FederatedModule]


def clustered(clustering: Clustering | None) -> FederatedModule:
    """Return a module with state on the server and the clients, in which five of eight clients take part."""
    server, uplink = partial(SGD, lr=1.0, momentum=0.5), ErrorFeedback(TopK(0.3))
    return module(clustering, server_optimizer=server, uplink=uplink, selection=Uniform(5))


def same(one: FederatedModule, other: FederatedModule) -> bool:
    """Return whether two modules have the same models, bit for bit."""
    left, right = values(one), values(other)
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FederatedDataModule, FederatedModule, Trainer]:
    """Return the path of a checkpoint with five clusters, its data and module, and a trainer."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("five")
    path, data, tested = folder / "five.ckpt", grouped(), clustered(IFCA(5))
    trainer = fit_in(folder)(tested, data, rounds=2)
    trainer.save_checkpoint(path)
    return path, data, tested, trainer


Five = tuple[Path, FederatedDataModule, FederatedModule, Trainer]


def test_a_checkpoint_of_five_models_is_evaluated_with_one_configured(five: Five) -> None:
    path, data, tested, trainer = five
    trainer.test(tested, datamodule=data, verbose=False)
    expected = dict(trainer.callback_metrics)
    one = clustered(None)
    again = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    actual = again.test(one, datamodule=data, ckpt_path=str(path), verbose=False, weights_only=True)[0]
    assert actual["test/accuracy"] == expected["test/accuracy"].item()
    assert same(tested, one)


@pytest.mark.parametrize("clients", [5, 12])
def test_a_checkpoint_of_one_cluster_is_evaluated_on_data_of_other_clients(
    fit: Fit, tmp_path: Path, clients: int
) -> None:
    fit(clustered(ClusteredFL()), grouped(), rounds=1, limit_val_batches=0).save_checkpoint(tmp_path / "one.ckpt")
    other, path = clustered(ClusteredFL()), str(tmp_path / "one.ckpt")
    again = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    again.test(other, small_data(num_clients=clients), ckpt_path=path, verbose=False, weights_only=True)
    assert other.clustering.assigned == [0] * clients
    assert other.clustering.history == [(0, client, 0) for client in range(clients)]


@pytest.mark.parametrize("seed", [1, 2])
def test_an_evaluation_asks_no_client_that_has_chosen(fit: Fit, tmp_path: Path, seed: int) -> None:
    def make() -> FederatedModule:
        # Without static norms no statistics are gathered, so statistics do not show whether clients were asked.
        return module(IFCA(3), net=partial(small_net, norm="none"), selection=Uniform(2), local=LONGER, seed=seed)

    path, data, tested, again = tmp_path / "two.ckpt", grouped(), make(), make()
    trainer = fit(tested, data, rounds=6)
    trainer.save_checkpoint(path)
    trainer.test(tested, datamodule=data, verbose=False)
    expected = dict(trainer.callback_metrics)
    evaluation = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    actual = evaluation.test(again, datamodule=data, ckpt_path=str(path), verbose=False, weights_only=True)[0]
    assert again.clustering.history == tested.clustering.history
    assert actual["test/accuracy"] == expected["test/accuracy"].item()


def test_clusters_of_a_checkpoint_are_refused_for_other_clients(five: Five) -> None:
    path = five[0]
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for other in (small_data(num_clients=8), small_data(num_clients=12)):
        with pytest.raises(ConfigurationError, match=r"checkpoint's partition \(8 clients of"):
            trainer.test(clustered(None), datamodule=other, ckpt_path=str(path), verbose=False, weights_only=True)


def test_all_models_of_a_checkpoint_are_trained_by_their_clients(fit: Fit, five: Five) -> None:
    path, data, tested, _ = five
    one, before = clustered(None), values(tested)
    sent: set[int] = set()
    with pytest.warns(UserWarning, match="holds 5 global models, the configuration asks for 1: all 5 are trained on"):
        trainer = fit(one, data, rounds=4, name="one", ckpt=str(path), limit_val_batches=0)
    largest = tested.clustering.largest
    assert one.clustering.assigned == [largest if cluster < 0 else cluster for cluster in tested.clustering.assigned]
    assert one.clustering.history == tested.clustering.history
    for round in (2, 3):
        sent |= {one.clustering.cluster_of(client) for client in one.selection.select(round, Everyone(8))}
    pairs = enumerate(zip(before, values(one), strict=True))
    moved = {c for c, (old, new) in pairs if not all(torch.equal(a, b) for a, b in zip(old, new, strict=True))}
    assert moved == sent
    table = rows(trainer)
    assert table["cluster/count"].tolist() == [5.0, 5.0]
    assert table["step"].tolist() == [2, 3]
    assert rows(trainer, "clusters").to_numpy().tolist() == [list(entry) for entry in tested.clustering.history]
    # No client is asked: each one downloads only the model of its cluster.
    plain = rows(fit(clustered(None), data, rounds=1, name="plain", limit_val_batches=0))
    assert table["comm/down_bytes"].tolist() == [plain["comm/down_bytes"][0]] * 2


@pytest.mark.filterwarnings("ignore:The checkpoint holds")
@pytest.mark.parametrize("make", [lambda: None, lambda: IFCA(3)], ids=["null", "fewer"])
def test_a_run_resumed_from_a_clustered_checkpoint_ends_with_the_same_bits(
    fit: Fit, five: Five, tmp_path: Path, make: Callable[[], Clustering | None]
) -> None:
    path, data, _, _ = five
    whole, second, middle = clustered(make()), clustered(make()), tmp_path / "middle.ckpt"
    options: dict[str, Any] = {"check_val_every_n_epoch": 6}
    straight = fit(whole, data, rounds=6, name="whole", ckpt=str(path), **options)
    fit(clustered(make()), data, rounds=4, name="first", ckpt=str(path), **options).save_checkpoint(middle)
    again = fit(second, data, rounds=6, name="again", ckpt=str(middle), **options)
    assert same(whole, second)
    assert str(whole.clustering.state_dict()) == str(second.clustering.state_dict())
    left, right = rows(straight)[2:].reset_index(drop=True), rows(again)
    left, right = (table.astype(float).dropna(axis=1, how="all") for table in (left, right))
    pd.testing.assert_frame_equal(left, right, check_exact=True, check_like=True)


@pytest.mark.filterwarnings("ignore:The checkpoint holds")
def test_a_policy_configured_with_fewer_clusters_resumes_with_all_clusters(fit: Fit, five: Five) -> None:
    path, data, _, _ = five
    modules = []
    for clusters in (5, 2):
        modules.append(clustered(IFCA(clusters)))
        fit(modules[-1], data, rounds=4, name=str(clusters), ckpt=str(path), limit_val_batches=0)
    assert same(*modules)
    assert str(modules[0].clustering.state_dict()) == str(modules[1].clustering.state_dict())


@pytest.mark.filterwarnings("ignore:The checkpoint holds")
def test_splits_are_kept_without_a_configured_clustering(fit: Fit, tmp_path: Path) -> None:
    path, data, split = tmp_path / "split.ckpt", grouped(), module(splitting())
    fit(split, data, rounds=3, limit_val_batches=0).save_checkpoint(path)
    assert len(split.models) > 1
    one = module(OneCluster())
    fit(one, data, rounds=5, name="one", ckpt=str(path), limit_val_batches=0)
    assert one.clustering.assigned == split.clustering.assigned


@pytest.mark.filterwarnings("ignore:The checkpoint holds", "ignore:IFCA")
def test_shared_tensors_stay_shared_after_resuming(fit: Fit, tmp_path: Path) -> None:
    path, data, shared = tmp_path / "shared.ckpt", grouped(), module(IFCA(3, shared=["blocks.*"]))
    fit(shared, data, rounds=2).save_checkpoint(path)
    one = module(None)
    fit(one, data, rounds=4, name="one", ckpt=str(path))
    first, others = dict(one.net.named_parameters()), [dict(net.named_parameters()) for net in list(one.models)[1:]]
    for name, parameter in first.items():
        assert all((other[name] is parameter) == name.startswith("blocks.") for other in others)
    assert any(not torch.equal(first[name], p) for name, p in shared.net.named_parameters() if "blocks" in name)


@pytest.mark.parametrize(
    ("clustering", "message"),
    [
        (IFCA(7), "at most 5 clusters, as many global models as the checkpoint holds, but got 7"),
        (IFCA(5, restarts=1), "checkpoint's clustering .* but got IFCA"),
        (ClusteredFL(), "checkpoint's clustering .* but got ClusteredFL"),
    ],
)
def test_conflicting_clusterings_are_refused(fit: Fit, five: Five, clustering: Any, message: str) -> None:
    path, data, _, _ = five
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(clustered(clustering), data, rounds=3, name="other", ckpt=str(path))
    assert "\n" not in str(error.value)
