"""Personal tensors: against a bare loop, in every executor, after a resume, and refused patterns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from hetfl import FedAvg, FederatedModule, Level
from hetfl.aggregators import HolderMean
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.local import Executor, LocalTraining, Personal, Proximal, Sequential, Stacked, Workers
from hetfl.local.bench import Bench
from hetfl.local.jobs import training_batches
from hetfl.parts import DynamicMask
from hetfl.parts.growth import OwnMasks
from hetfl.selection import Uniform
from hetfl.store import DiskStore
from hetfl.types import Task
from tests.conftest import small_data, small_levels, small_module
from tests.local_cases import Problem, bench_of, results, sgd

Fit = Callable[..., Trainer]
HEAD = ["classifier.*"]
LR = 0.05


def everyone() -> LocalTraining:
    return LocalTraining(epochs=2, batch_size=10, optimizer=lambda p: SGD(p, lr=LR, momentum=0.9))


def table(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


@pytest.mark.usefixtures("double_precision")
def test_fedper_equals_a_bare_loop(fit: Fit) -> None:
    """Bodies are averaged, every client keeps its head, and momentum restarts in every round."""
    data, rounds = small_data(), 3
    module: Any = small_module(
        FedAvg,
        levels=small_levels(1.0),
        aggregator=HolderMean(),
        local=everyone(),
        selection=Uniform(12),
        personal=HEAD,
    )
    initial = {name: p.detach().double().clone() for name, p in module.net.named_parameters()}
    trainer = fit(module, data, rounds=rounds, precision="64-true")
    clients = range(data.num_clients)
    body = {name: value.clone() for name, value in initial.items() if not name.startswith("classifier")}
    heads = {k: {name: value.clone() for name, value in initial.items() if name not in body} for k in clients}
    net = module.levels.build("a").double()
    bench = Bench(module.hosting.problem, data, module.models.tensors)
    for t in range(rounds):
        moved = {name: torch.zeros_like(value) for name, value in body.items()}
        for k in clients:
            net.load_state_dict({**body, **heads[k]}, strict=False)
            net.train()
            optimizer = SGD(net.parameters(), lr=LR, momentum=0.9)
            for inputs, targets in training_batches(bench, Task(k, "a", t, t)):
                optimizer.zero_grad()
                F.cross_entropy(net(inputs.double()), targets).backward()
                optimizer.step()
            for name, p in net.named_parameters():
                if name in body:
                    moved[name] += (p.detach() - body[name]) / len(clients)
                else:
                    heads[k][name] = p.detach().clone()
        body = {name: value + moved[name] for name, value in body.items()}
    for name, p in module.net.named_parameters():
        expected = body.get(name, initial[name])
        assert torch.allclose(p, expected, rtol=0, atol=1e-11), name
    for k in clients:
        kept = module.personal.store.load(k)
        assert kept.keys() == heads[k].keys()
        for name, value in heads[k].items():
            assert torch.allclose(initial[name] + kept[name], value, rtol=0, atol=1e-11)
    sent = sum(value.numel() for value in body.values())
    row = table(trainer).iloc[-1]
    assert row["comm/down_bytes_total"] >= rounds * 12 * (56 + 8 * sent)
    assert row["comm/up_bytes_total"] >= rounds * 12 * (56 + 8 * sent)
    assert module.task_parts.upload_sizes(data)["a"].size == sent
    assert module.forecast.down_bytes()["a"] == 56 + 8 * sent


def test_accuracies_with_personal_heads_are_logged_and_listed(fit: Fit) -> None:
    module: Any = small_module(personal=HEAD, selection=Uniform(12), local=everyone())
    data = small_data()
    trainer = fit(module, data, rounds=4, check_val_every_n_epoch=4)
    accuracy_by_round = table(trainer)["local/personal_accuracy"]
    assert accuracy_by_round.iloc[-1] > table(trainer)["val/accuracy"].iloc[-1]
    trainer.test(module, datamodule=data, verbose=False)
    rows = pd.read_csv(Path(str(trainer.log_dir)) / "clients.csv")
    assert rows["personal_accuracy"].mean() == pytest.approx(accuracy_by_round.iloc[-1])
    client = int(rows["test_samples"].to_numpy().argmax())
    net = copy.deepcopy(module.submodel(str(rows["level"][client])))
    for name, block in module.personal.store.load(client).items():
        parameter = net.get_parameter(name)
        parameter.data += block[tuple(slice(size) for size in parameter.shape)]
    test = data.client_data(client, "test")
    logits = net.eval()(data.transform.eval(test.inputs))
    restricted = module.restrict(logits, data.labels(client).expand(len(logits), -1))
    accuracy = (restricted.argmax(1) == test.targets).double().mean().item()
    assert rows["personal_accuracy"][client] == pytest.approx(accuracy)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("executor", [Stacked(3), Workers(2)])
def test_clients_start_from_their_personal_tensors(executor: Executor) -> None:
    problem = Problem(LocalTraining(epochs=2, gradient_clip=0.6, optimizer=sgd(), penalty=Proximal(0.7)))
    names = frozenset(name for name, _ in problem.net.named_parameters() if name.startswith("classifier"))
    local_problem = replace(problem.local_problem(), personal=names)
    random = torch.Generator().manual_seed(0)

    def recall(task: Task) -> Task:
        size = sum(p.numel() for name, p in problem.build(task.level).named_parameters() if name in names)
        return task if task.client == 1 else replace(task, personal=torch.randn(size, generator=random))

    tasks = [recall(Task(k, level, 3, 3, 0.05)) for level in "ba" for k in range(3)]

    def bench() -> Bench:
        base = bench_of(problem)
        return Bench(local_problem, base.data, base.models)

    expected = results(Sequential(), bench(), tasks)
    try:
        actual = results(executor, bench(), tasks)
    finally:
        executor.close()
    assert all(torch.allclose(one[0], two[0], rtol=0, atol=1e-12) for one, two in zip(expected, actual, strict=True))
    without = results(Sequential(), bench(), [replace(task, personal=None) for task in tasks])
    assert [torch.equal(one[0], two[0]) for one, two in zip(expected, without, strict=True)] == [False, True, False] * 2


def kept(module: FederatedModule) -> dict[int, dict[str, Tensor]]:
    return {client: dict(module.personal.store.load(client)) for client in module.personal.store.clients()}


def assert_kept_alike(one: FederatedModule, two: FederatedModule) -> None:
    actual, expected = kept(one), kept(two)
    assert actual.keys() == expected.keys()
    for client, blocks in expected.items():
        assert all(torch.equal(block, actual[client][name]) for name, block in blocks.items())


def test_a_resumed_run_ends_with_the_same_bits_in_memory_and_on_disk(fit: Fit, tmp_path: Path) -> None:
    def module(*store: DiskStore) -> FederatedModule:
        return small_module(personal=Personal(["*norm*", "classifier.bias"], *store), uplink=ErrorFeedback(TopK(0.2)))

    whole, first, second, filed = module(), module(), module(), module(DiskStore())
    one = fit(whole, rounds=4, name="whole")
    fit(first, rounds=2, name="begun").save_checkpoint(tmp_path / "half.ckpt")
    two = fit(second, rounds=4, name="resumed", ckpt=str(tmp_path / "half.ckpt"))
    three = fit(filed, rounds=4, name="filed")
    pd.testing.assert_frame_equal(table(one).iloc[2:].reset_index(drop=True), table(two), check_exact=True)
    pd.testing.assert_frame_equal(table(one), table(three), check_exact=True)
    for other in (second, filed):
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))
        assert_kept_alike(whole, other)


def test_a_checkpoint_of_a_run_with_personal_tensors_on_disk_is_tested(fit: Fit, tmp_path: Path) -> None:
    def module() -> FederatedModule:
        return small_module(personal=Personal(["classifier.bias"], DiskStore()))

    trained, paths, scores = module(), [], []
    for name in ("one", "two"):
        trainer = fit(trained, rounds=1, name=name)
        paths.append(Path(str(trainer.log_dir)) / "checkpoints" / "last.ckpt")
        trainer.save_checkpoint(paths[-1])
        scores.append(trainer.test(trained, datamodule=small_data(), verbose=False))
    fresh = module()
    for path, expected in zip(paths, scores, strict=True):
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        found = trainer.test(fresh, small_data(), ckpt_path=str(path), weights_only=True, verbose=False)
        assert found[0].items() <= expected[0].items()  # without a logger there is no step
    trainer.test(trained, small_data(), ckpt_path=str(paths[0].rename(tmp_path / "a.ckpt")), weights_only=True)


def test_what_clients_keep_is_not_tested_on_other_clients(fit: Fit, tmp_path: Path) -> None:
    def masked() -> FederatedModule:
        return small_module(
            levels={"a": Level("a"), "b": Level("b", density=0.5)}, parts=DynamicMask(OwnMasks(), every=1)
        )

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    path, other = str(tmp_path / "one.ckpt"), small_data(seed=1)
    for module in (masked, partial(small_module, personal=["classifier.bias"])):
        fit(module(), rounds=1).save_checkpoint(path)
        with pytest.raises(ConfigurationError, match=r"checkpoint's partition \(12 clients of"):
            trainer.test(module(), other, ckpt_path=path, weights_only=True)
    trainer.test(small_module(), other, ckpt_path=path, weights_only=True, verbose=False)  # the global model alone


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["head.*"], r"Expected patterns of personal that match tensors, such as .* but got 'head\.\*'"),
        (["*"], "got none"),
    ],
)
def test_patterns_that_match_no_tensor_or_all_tensors_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small_module(personal=names)
