"""Runs of every objective: learning, logging, resuming, ranks, nodes, export, and refused combinations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch.optim import SGD

import hetfl
from hetfl import DepthFL, FedAvg, FederatedModule
from hetfl.clustering import IFCA
from hetfl.data import IID, Dirichlet, TensorData
from hetfl.errors import ConfigurationError
from hetfl.export import export_submodel
from hetfl.local import Executor, LocalTraining, Sequential, Stacked, Workers
from hetfl.models import MLP, MultiExitTransformer
from hetfl.objectives import Classification, LanguageModelling, MultiLabel, Regression
from hetfl.parts import RandomMask
from hetfl.runs.headline import headline_in
from hetfl.selection import Uniform
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.objective_cases import CASES, NET, TOKENS, measured

Fit = Callable[..., Trainer]
ROUNDS = 6


def cases(*quick: str) -> list[Any]:
    """Return all cases; cases that are not named are slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def table(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir)) / "metrics.csv")


@pytest.mark.parametrize("name", cases("weighted classes", "labels", "numbers"))
def test_a_run_learns_logs_its_headline_and_resumes_with_the_same_bits(name: str, fit: Fit, tmp_path: Path) -> None:
    case = CASES[name]
    headline = case.objective().headline
    whole, first, second = case.module(), case.module(), case.module()
    trainer = fit(whole, case.data(), rounds=ROUNDS, name="whole")
    metrics = table(trainer)
    scores = metrics[f"val/{headline.name}"]
    assert headline.better(scores.iloc[-1], scores.iloc[0])
    assert metrics["val/loss"].iloc[-1] < metrics["val/loss"].iloc[0]
    for column in (f"val/{headline.name}_by_level/b", f"local/{headline.name}_worst10"):
        assert metrics[column].notna().all()
    assert not [column for column in metrics if "accuracy_" in str(column)]
    assert headline_in(Path(str(trainer.log_dir))) == headline
    trainer.test(whole, datamodule=case.data(), verbose=False)
    clients = pd.read_csv(Path(str(trainer.log_dir)) / "clients.csv")
    assert clients[[headline.name, f"own_{headline.name}"]].notna().all(axis=None)

    fit(first, case.data(), rounds=2, name="begun").save_checkpoint(tmp_path / "half.ckpt")
    resumed = fit(second, case.data(), rounds=ROUNDS, name="resumed", ckpt=str(tmp_path / "half.ckpt"))
    expected = table(trainer)[metrics.columns].iloc[2:].drop(columns=[c for c in metrics if str(c).startswith("test/")])
    pd.testing.assert_frame_equal(expected.reset_index(drop=True), table(resumed)[expected.columns], check_exact=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", cases("weighted classes", "numbers", "masked tokens"))
def test_executors_give_equal_results(name: str, fit: Fit) -> None:
    case, values = CASES[name], []
    executors: list[Executor] = [Sequential(), Stacked(), Workers(2)]
    for number, executor in enumerate(executors):
        module = case.module(executor=executor).double()
        fit(module, case.data(), rounds=2, name=f"run{number}", precision="64-true", limit_val_batches=0)
        values.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    assert torch.allclose(values[0], values[1], rtol=0, atol=1e-11)
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize("name", cases("numbers"))
def test_ranks_give_the_same_bits_as_one_process(name: str, fit: Fit, tmp_path: Path) -> None:
    case = CASES[name]
    fit(case.module(), case.data(), rounds=2, name="one")
    fit(case.module(), case.data(), rounds=2, name="two", strategy="ddp_fork", devices=2)
    one, two = (next((tmp_path / run).iterdir()) / "metrics.csv" for run in ("one", "two"))
    assert one.read_text() == two.read_text()


@pytest.mark.parametrize("name", cases("labels", "numbers"))
def test_nodes_give_the_same_bits_as_one_process(name: str, fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("flwr", reason="hetfl.flower needs Flower: pip install 'hetfl[flower]'")
    from tests.flower_cases import FakePost, federated, make_node

    case = CASES[name]
    alone = table(fit(case.module(), case.data(), rounds=2, name="alone"))
    split = {11: range(2), 12: range(2, 5)}
    nodes = {n: make_node(of, tmp_path / f"node{n}", case.module, case.data) for n, of in split.items()}
    on_nodes = table(fit(federated(case.module(), FakePost(nodes)), case.data(), rounds=2, name="nodes"))
    pd.testing.assert_frame_equal(on_nodes, alone, check_exact=True)


@pytest.mark.parametrize("name", ["labels", "numbers", "next token"])
def test_exported_levels_have_the_outputs_of_the_framework(name: str, fit: Fit, tmp_path: Path) -> None:
    case = CASES[name]
    module, data = case.module(), case.data()
    fit(module, data, rounds=1).test(module, datamodule=data, verbose=False)
    export_submodel(module, "b", tmp_path / "b.safetensors")
    loaded = hetfl.load(tmp_path / "b.safetensors")
    inputs = data.transform.eval(data.resident.all_test.inputs)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), module.submodel("b")(inputs))


def test_the_models_objective_overrides_the_datas(fit: Fit) -> None:
    """The targets are the same; weights and headline differ."""
    objective = Classification(class_weights=[0.1] * 9 + [5.0], headline="macro_f1")
    plain, weighted = (small_module(FedAvg, levels=small_levels(1.0), objective=each) for each in (None, objective))
    one, other = (table(fit(module, rounds=2)) for module in (plain, weighted))
    assert "val/macro_f1" in other
    assert "val/macro_f1" not in one
    assert other["val/accuracy"].iloc[-1] < one["val/accuracy"].iloc[-1]  # the weighted model predicts 9 everywhere
    assert other["val/loss"].iloc[-1] != one["val/loss"].iloc[-1]


def test_a_batch_with_one_cluster_and_unowned_samples_is_fully_measured(fit: Fit) -> None:
    """A batch with unowned samples, and samples of clients whose cluster is not the first."""
    module = small_module(clustering=IFCA(2))
    data = small_data()
    fit(module, data, rounds=1)
    module.evaluation.begin()
    module.evaluation._model_N = torch.tensor([0] + [1] * 11)
    module.evaluation._used = [0, 1]
    some = data.resident.all_test
    batch = (some.inputs[:6], some.targets[:6], torch.tensor([3, 3, 4, 4, -1, -1]))
    sums = module.evaluation._evaluate(batch, ["a"], by_client=True)["a"]
    assert sums[:, 1].tolist() == [1.0] * 6


def test_personal_tensors_are_measured_in_double_precision(fit: Fit) -> None:
    metrics = table(fit(small_module(personal=["classifier.*"]), rounds=1, precision="64-true"))
    assert metrics["local/personal_accuracy"].notna().all()


def test_masks_are_counted_in_double_precision(fit: Fit) -> None:
    levels = {"a": hetfl.Level("a"), "b": hetfl.Level("b", density=0.3)}
    metrics = table(fit(small_module(levels=levels, parts=RandomMask()), rounds=1, precision="64-true"))
    assert (metrics["compute/sparse_flops_total"] < metrics["compute/flops_total"]).all()


@pytest.mark.parametrize("executor", [Sequential(), Stacked()], ids=["Sequential", "Stacked"])
def test_train_loss_is_the_weighted_mean_over_all_samples(executor: Executor, fit: Fit) -> None:
    """The reported loss of clients that do not move is the weighted mean over all samples, for any batches."""
    objective = Classification(class_weights=[0.1] * 5 + [3.0] * 5)
    still = LocalTraining(1, 7, None, lambda p: SGD(p, lr=0.0))
    settings: dict[str, Any] = {"executor": executor, "local": still, "levels": small_levels(1.0)}
    net = partial(small_net, norm="none")
    module = small_module(FedAvg, net=net, objective=objective, selection=Uniform(1), **settings)
    data = small_data(num_clients=1, partitioner=IID())
    loss = table(fit(module, data, rounds=1, limit_val_batches=0))["train/loss"].iloc[0]
    samples = data.client_data(0)
    with torch.no_grad():
        expected = objective.loss(module.net(data.transform.eval(samples.inputs)), samples.targets)
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def multi_exit() -> FederatedModule:
    def net(**sizes: Any) -> MultiExitTransformer:
        return MultiExitTransformer(TOKENS, channels=8, heads=2, feed_forward=8, layers=2, pooling="none", **sizes)

    levels = {"a": hetfl.Level("a", depth=2), "b": hetfl.Level("b", depth=1)}
    return DepthFL(net, levels, selection=Uniform(4))


def test_depthfl_distils_token_by_token(fit: Fit) -> None:
    case = CASES["next token"]
    metrics = table(fit(multi_exit(), case.data(), rounds=3))
    assert metrics["val/perplexity_by_head/1"].notna().all()
    assert metrics["val/perplexity"].iloc[-1] < metrics["val/perplexity"].iloc[0]


def numbers(**settings: Any) -> TensorData:
    inputs, targets = measured(40, 0)
    arguments = {"train_inputs": inputs, "train_targets": targets, "test_inputs": inputs, "test_targets": targets}
    return TensorData(**{**arguments, "num_clients": 4, "objective": Regression(), **settings})


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (
            lambda: CASES["numbers"].module(label_rules=True),
            numbers,
            "an objective with labels for HeteroFL.* but got Regression: set label_rules to false",
        ),
        (
            lambda: CASES["numbers"].module(),
            lambda: numbers(partitioner=Dirichlet(0.5)),
            "one class each, as Dirichlet goes by classes, but got those of Regression",
        ),
        (
            lambda: CASES["numbers"].module(objective=MultiLabel()),
            numbers,
            "0 or 1 of shape .* for MultiLabel but got torch.float32",
        ),
        (
            lambda: CASES["numbers"].module(),
            lambda: numbers(objective=None),
            "targets as whole numbers .* for Classification but got torch.float32",
        ),
        (
            lambda: CASES["labels"].module(objective=LanguageModelling()),
            CASES["labels"].data,
            "an objective for the targets of MultiLabel, which the data has, but got LanguageModelling",
        ),
        (
            lambda: small_module(objective=Classification(class_weights=[1.0, 2.0])),
            small_data,
            "class_weights for 10 classes",
        ),
        (
            lambda: CASES["masked tokens"].module(objective=LanguageModelling(masked=0.3, mask_token=TOKENS + 1)),
            CASES["masked tokens"].data,
            "the net at level a to take inputs of int64 .* but got: index out of range",
        ),
        (
            lambda: replace(CASES["next token"], net=partial(NET, TOKENS, causal=False)).module(),
            CASES["next token"].data,
            "a causal net for targets that are the following tokens but got outputs that depend on later tokens",
        ),
        (
            lambda: FedAvg(lambda **s: MLP(6, 3, hidden=(8,), **s), small_levels(1.0), selection=Uniform(2)),
            numbers,
            r"outputs of shape \(4, 2\) for 2 outputs from the net at level a but got \(4, 3\) from MLP",
        ),
    ],
    ids=["labels", "partitioner", "objective", "targets", "kind", "weights", "mask token", "causal", "outputs"],
)
def test_incompatible_data_nets_and_objectives_are_refused_in_one_line(
    module: Callable[[], FederatedModule], data: Callable[[], Any], message: str, fit: Fit
) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(module(), data(), rounds=1)
    assert "\n" not in str(error.value)


def test_distillation_of_regression_outputs_is_refused(fit: Fit) -> None:
    net = CASES["numbers"].net
    with pytest.raises(ConfigurationError, match="distillation false for Regression, whose outputs"):
        fit(DepthFL(net, {"a": hetfl.Level("a")}), numbers(), rounds=1)
