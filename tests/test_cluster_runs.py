"""Whole runs with several global models: rounds, costs, resuming, workers and evaluation."""

from __future__ import annotations

import copy
import errno
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from hetfl import FedAvg, FederatedModule, HeteroFL, Level, wire
from hetfl.aggregators import FLTrust, HolderMean
from hetfl.clustering import IFCA, ClusteredFL, Clustering
from hetfl.compression import ErrorFeedback, TopK
from hetfl.data import IID, FederatedDataModule, RotationGroups
from hetfl.errors import ConfigurationError
from hetfl.local import LocalTraining, Workers
from hetfl.runs import RunFolder
from hetfl.selection import Uniform
from tests.conftest import small_data, small_module, small_net

Fit = Callable[..., Trainer]

QUICK = LocalTraining(batch_size=200, optimizer=lambda p: SGD(p, lr=0.1))

LONGER = LocalTraining(epochs=2, batch_size=20, optimizer=lambda p: SGD(p, lr=0.1))


def grouped(**changes: Any) -> FederatedDataModule:
    """Return Digits over 8 clients; half of the clients have upside-down images."""
    return small_data(num_clients=8, partitioner=IID(), client_transform=RotationGroups([0, 180]), **changes)


def module(clustering: Clustering | None, kind: type[FederatedModule] = FedAvg, **changes: Any) -> FederatedModule:
    arguments: dict[str, Any] = {"levels": {"a": Level("a")}, "local": QUICK, "selection": Uniform(8)}
    return small_module(kind, clustering=clustering, **{**arguments, **changes})


def rows(trainer: Trainer, name: str = "metrics") -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / f"{name}.csv")


def values(module: FederatedModule) -> list[list[Tensor]]:
    return [[p.detach().clone() for p in net.parameters()] for net in module.models]


def test_a_round_of_ifca_chooses_trains_and_averages_within_clusters(fit: Fit) -> None:
    net = partial(small_net, norm="none")
    tested = module(IFCA(2), net=net, aggregator=HolderMean())
    before = [copy.deepcopy(tested.net).double(), copy.deepcopy(tested.models[1]).double()]
    data = grouped()
    precision = fit(tested, data, rounds=1, limit_val_batches=0, precision="64-true").precision_plugin
    sums: list[list[Tensor]] = [[], []]
    members: list[list[int]] = [[], []]
    for client in range(8):
        samples = data.client_data(client)
        with precision.forward_context():
            inputs, targets = data.transform.eval(samples.inputs), samples.targets
        losses = [F.cross_entropy(model(inputs), targets).item() for model in before]
        chosen = losses.index(min(losses))
        trained = copy.deepcopy(before[chosen])
        F.cross_entropy(trained(inputs), targets).backward()
        steps = [-0.1 * p.grad for p in trained.parameters() if p.grad is not None]
        sums[chosen] = steps if not sums[chosen] else [a + b for a, b in zip(sums[chosen], steps, strict=True)]
        members[chosen].append(client)
    assert all(members)
    assert [tested.clustering.assigned.index(c) in members[c] for c in range(2)] == [True, True]
    for cluster, (model, ends) in enumerate(zip(before, values(tested), strict=True)):
        for start, step, end in zip(model.parameters(), sums[cluster], ends, strict=True):
            torch.testing.assert_close(end, start + step / len(members[cluster]), rtol=0, atol=1e-12)


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    return Adam(parameters, lr=0.01, weight_decay=0.1)


class Chosen(IFCA):
    """Clients choose cluster 1 in odd rounds and cluster 0 in even rounds; no client chooses cluster 2."""

    def assign(self, round: int, cohort: Any, probe: Any) -> None:
        for client in cohort:
            self.put(round, client, round % 2)
        self._chosen = Counter()


def test_an_empty_cluster_keeps_values_and_optimizer_state(fit: Fit) -> None:
    tested = module(Chosen(3), server_optimizer=adam)
    start = values(tested)
    trainer = fit(tested, grouped(), rounds=1, limit_val_batches=0)
    after_one = values(tested)
    assert all(torch.equal(a, b) for cluster in (1, 2) for a, b in zip(start[cluster], after_one[cluster], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(start[0], after_one[0], strict=True))
    assert set(trainer.optimizers[0].state) == set(tested.net.parameters())
    tested = module(Chosen(3), server_optimizer=adam)
    trainer = fit(tested, grouped(), rounds=2, limit_val_batches=0, name="two")
    two = values(tested)
    assert all(torch.equal(a, b) for a, b in zip(after_one[0], two[0], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(start[2], two[2], strict=True))
    steps = [trainer.optimizers[0].state[p]["step"].item() for p in tested.net.parameters()]
    assert set(steps) == {1.0}


class Rarely(IFCA):
    """Clients change their cluster in every second round."""

    def assign(self, round: int, cohort: Any, probe: Any) -> None:
        for client in cohort:
            self.put(round, client, round // 2)
        self._chosen = Counter()


class FullOnce(RunFolder):
    """Has no space for the first ``clusters.csv``; counts its rows at each try."""

    def write_file(self, name: str, data: bytes) -> None:
        if name == "clusters.csv":
            self.tried = [*getattr(self, "tried", []), data.count(b"\n") - 1]
            if len(self.tried) == 1:
                raise OSError(errno.ENOSPC, "No space left on device", name)
        super().write_file(name, data)


def test_the_table_of_clusters_is_written_when_it_has_changed(fit: Fit, tmp_path: Path) -> None:
    tested, folder = module(Rarely(2)), FullOnce(str(tmp_path))
    with pytest.warns(UserWarning, match=r"clusters.csv not written \(No space left on device\)"):
        trainer = fit(tested, grouped(), rounds=4, limit_val_batches=0, logger=folder)
    assert folder.tried == [8, 8, 16]  # round 2 tries again; round 4 changes nothing
    assert rows(trainer, "clusters").to_numpy().tolist() == [list(change) for change in tested.clustering.history]


@pytest.mark.filterwarnings("ignore:IFCA")
@pytest.mark.slow
def test_identical_models_separate_only_with_jitter(fit: Fit) -> None:
    for restarts, sizes in ((0, [8, 0]), (1, [4, 4])):
        tested = module(IFCA(2, restarts=restarts), local=LONGER)
        tested.models[1].load_state_dict(tested.net.state_dict())
        fit(tested, grouped(val_fraction=0.1), rounds=5, limit_val_batches=0, name=f"{restarts}")
        assert sorted((tested.clustering.assigned.count(c) for c in range(2)), reverse=True) == sizes


def test_choosing_a_cluster_is_charged(fit: Fit) -> None:
    one, two = module(None), module(IFCA(2))
    plain, ifca = (
        rows(fit(each, grouped(), rounds=1, limit_val_batches=0, name=name)) for each, name in ((one, "1"), (two, "2"))
    )
    another = wire.dense_size(one.levels.sizes["a"])
    assert ifca["comm/down_bytes"][0] - plain["comm/down_bytes"][0] == 8 * another
    assert ifca["comm/up_bytes"][0] - plain["comm/up_bytes"][0] == 8 * wire.dense_size(1)
    forward = two.levels.inspect(torch.zeros(2, 1, 8, 8), (2, 10))["a"][0]
    (data := grouped()).setup("fit")
    assert ifca["compute/flops_total"][0] - plain["compute/flops_total"][0] == 2 * forward * sum(data.sizes)


def test_shared_tensors_are_averaged_over_all_clusters(fit: Fit) -> None:
    tested = module(IFCA(2, shared=["blocks.*"]))
    trainer = fit(tested, grouped(), rounds=2, limit_val_batches=0)
    one, other = dict(tested.net.named_parameters()), dict(tested.models[1].named_parameters())
    same = {name for name in one if one[name] is other[name]}
    assert same == {name for name in one if name.startswith("blocks.")}
    plain = module(IFCA(2))
    down = rows(fit(plain, grouped(), rounds=2, limit_val_batches=0, name="plain"))["comm/down_bytes"]
    shared = sum(one[name].numel() for name in same)
    saved = wire.dense_size(plain.levels.sizes["a"]) - wire.dense_size(plain.levels.sizes["a"] - shared)
    assert (down - rows(trainer)["comm/down_bytes"]).tolist() == [8 * saved] * 2


def splitting() -> ClusteredFL:
    return ClusteredFL(eps1=10.0, eps2=1e-6, min_rounds=1)


POLICIES: dict[str, Callable[[], Clustering]] = {
    "ifca": lambda: IFCA(3),
    "shared": lambda: IFCA(2, shared=["blocks.0.*"]),
    "restarts": lambda: IFCA(2, restarts=2),
    "clustered_fl": splitting,
}


@pytest.mark.filterwarnings("ignore:IFCA", "ignore:No client")
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("ifca", "restarts")), "shared", "clustered_fl"]
)
def test_a_resumed_run_ends_with_the_same_bits_including_splits(fit: Fit, tmp_path: Path, name: str) -> None:
    def make() -> FederatedModule:
        server = partial(SGD, lr=1.0, momentum=0.5)
        uplink = ErrorFeedback(TopK(0.3))
        levels = {"a": Level("a"), "b": Level("b", 0.5)}
        changes = {"server_optimizer": server, "uplink": uplink, "levels": levels, "selection": Uniform(6)}
        return module(POLICIES[name](), HeteroFL, **changes)

    whole, second = make(), make()
    options: dict[str, Any] = {"check_val_every_n_epoch": 5}
    straight = fit(whole, grouped(), rounds=5, name="whole", **options)
    for round in (1, 3):
        path = tmp_path / f"{round}.ckpt"
        fit(make(), grouped(), rounds=round, name=f"first {round}", **options).save_checkpoint(path)
        second = make()
        again = fit(second, grouped(), rounds=5, name=f"again {round}", ckpt=str(path), **options)
        for one, two in zip(values(whole), values(second), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert str(whole.clustering.state_dict()) == str(second.clustering.state_dict())
        left, right = rows(straight)[round:].reset_index(drop=True), rows(again)
        left, right = (table.astype(float).dropna(axis=1, how="all") for table in (left, right))
        pd.testing.assert_frame_equal(left, right, check_exact=True, check_like=True)
        assert rows(again, "clusters").equals(rows(straight, "clusters"))
    assert len(whole.models) > 1


@pytest.mark.filterwarnings("ignore:No client")
def test_the_server_trains_the_model_of_a_new_cluster(fit: Fit) -> None:
    tested = module(splitting(), aggregator=FLTrust())
    fit(tested, grouped(server_fraction=0.2), rounds=4, limit_val_batches=0)
    assert len(tested.models) > 1


@pytest.mark.parametrize("name", ["ifca", "clustered_fl"])
def test_workers_equal_sequential_with_clusters(fit: Fit, name: str) -> None:
    modules = []
    for number, executor in enumerate((None, Workers(2))):
        tested = module(POLICIES[name](), executor=executor)
        fit(tested, grouped(), rounds=4, name=str(number), precision="64-true", limit_val_batches=0)
        modules.append((values(tested), tested.clustering.assigned))
    assert modules[0][1] == modules[1][1]
    for one, two in zip(modules[0][0], modules[1][0], strict=True):
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_clients_are_evaluated_with_the_model_of_their_cluster(fit: Fit) -> None:
    tested, data = module(IFCA(2), local=LONGER, seed=5), grouped()
    trainer = fit(tested, data, rounds=4)
    trainer.test(tested, datamodule=data, verbose=False)
    table, last = rows(trainer, "clients"), rows(trainer).iloc[-1]
    assert table["cluster"].tolist() == tested.clustering.assigned
    correct: dict[int, list[bool]] = {0: [], 1: []}
    for client in range(8):
        cluster = tested.clustering.assigned[client]
        samples = data.client_data(client, "test")
        net = tested.submodel("a", cluster)
        right = net(data.transform.eval(samples.inputs)).argmax(-1) == samples.targets
        assert table["accuracy"][client] == pytest.approx(right.double().mean().item())
        correct[cluster] += right.tolist()
    sizes = [tested.clustering.assigned.count(cluster) for cluster in range(2)]
    mean = sum(sizes[c] / 8 * (sum(shares) / len(shares)) for c, shares in correct.items())
    assert trainer.callback_metrics["test/accuracy"].item() == pytest.approx(mean, abs=1e-6)
    both = [last[f"cluster/accuracy/{cluster}"] for cluster in range(2)]
    assert last["val/accuracy"] == pytest.approx(sum(s / 8 * a for s, a in zip(sizes, both, strict=True)), abs=1e-6)
    assert [last[f"cluster/size/{cluster}"] for cluster in range(2)] == sizes


@pytest.mark.parametrize(
    ("clustering", "message"),
    [
        (IFCA(2, shared=["body.*"]), "patterns in clustering.shared that match .* but got 'body"),
        (IFCA(2, shared=["blocks.*", "body.*"]), "patterns in clustering.shared that match .* but got 'body"),
        (IFCA(9), "clusters of at most the number of clients, 8, for IFCA but got 9"),
        (IFCA(2, shared=["*"]), "tensors of the net that are not in clustering.shared but got none"),
    ],
)
def test_settings_that_need_one_model_are_refused(fit: Fit, clustering: Clustering, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(module(clustering), grouped(), rounds=1)
    assert "\n" not in str(error.value)
