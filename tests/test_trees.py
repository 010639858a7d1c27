"""Inputs that are token ids, tuples or dicts: in data sets, executors, statistics, files and nodes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import hetfl
from hetfl import FederatedModule, Level
from hetfl.errors import ConfigurationError
from hetfl.export import FORMATS, export_submodel
from hetfl.levels.budgets import Budgets
from hetfl.local import Auto, Executor, LocalTraining, Sequential, Stacked, Workers
from hetfl.local.bench import Bench
from hetfl.local.flops import flops_per_sample
from hetfl.local.stacked.folding import FoldedNet
from hetfl.submodel import state_of
from hetfl.tree import cast, divided, in_words, leaves, length, mapped, moved, shapes, stacked, taken
from tests.conftest import small_levels, small_module
from tests.local_cases import Problem, results, sgd, tasks_of
from tests.tree_cases import CLASSES, FORMS, Given, MaskedNet, TextNet, raw

Fit = Callable[..., Trainer]
LOCAL = LocalTraining(3, 10, 1.0, lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
EACH_FORM = pytest.mark.parametrize("form", FORMS)


def module_of(form: str, **changes: Any) -> FederatedModule:
    return small_module(**{"net": FORMS[form], "levels": small_levels(1.0, 0.5), "local": LOCAL, **changes})


def same(a: Any, b: Any) -> bool:
    return in_words(a) == in_words(b) and all(map(torch.equal, leaves(a), leaves(b)))


TREE = {"a": torch.arange(6).view(3, 2), "b": (torch.rand(3), [torch.ones(3, 1, dtype=torch.bool)])}


def test_trees_are_indexed_sliced_stacked_and_cast_leaf_by_leaf() -> None:
    assert length(TREE) == 3
    assert shapes(TREE) == ((3, 2), (3,), (3, 1))
    assert in_words(TREE) == "{a: int64 (3, 2), b: (float32 (3), (bool (3, 1)))}".replace("(3)", "(3,)")
    one, rest = divided(TREE, [1, 2])
    assert same(one, taken(TREE, slice(1)))
    assert rest["b"][1][0].data_ptr() == TREE["b"][1][0][1:].data_ptr()  # type: ignore[index]
    assert same(taken(stacked([TREE, TREE]), 1), TREE)
    assert [leaf.dtype for leaf in leaves(cast(TREE, torch.float64))] == [torch.int64, torch.float64, torch.bool]
    assert [leaf.device.type for leaf in leaves(moved(TREE, torch.device("meta")))] == ["meta"] * 3
    assert same(mapped(torch.add, {"x": torch.ones(1)}, {"x": torch.ones(1)}), {"x": torch.full((1,), 2.0)})


@pytest.mark.parametrize("other", [torch.ones(1), {"b": 1}, (1,), [1, 2, 3]])
def test_trees_of_different_structure_are_not_joined(other: Any) -> None:
    for tree in ({"a": 1}, (1, 2)):
        with pytest.raises(ValueError, match=r"^expected"):
            mapped(lambda *parts: parts[0], tree, other)


@EACH_FORM
def test_client_samples_keep_their_tree_structure_and_values(form: str) -> None:
    data = Given(form, val_fraction=0.0)
    data.setup()
    inputs, targets = raw(form, 150, 0)
    for client in range(6):
        rows = (torch.arange(150) // 3 % 6 == client).nonzero().flatten()
        assert same(data.client_data(client).inputs, taken(inputs, rows))
        assert torch.equal(data.client_data(client).targets, targets[rows])
    (loader,) = data.test_dataloader()
    batches = list(loader)
    assert sum(length(batch.inputs) for batch in batches) == 60


class Source:
    """Three clients with tree inputs."""

    def __init__(self, form: str) -> None:
        self.data = Given(form, val_fraction=0.0)
        self.data.setup()
        self.transform = self.data.transform

    def client_data(self, client: int, split: str = "train") -> Any:
        return self.data.client_data(client, split)  # type: ignore[arg-type]

    def labels(self, client: int) -> Tensor:
        return self.data.labels(client)


def bench(form: str) -> Bench:
    problem = Problem(LocalTraining(2, 7, 0.5, sgd()), FORMS[form], small_levels(1.0, 0.5))
    return Bench(problem.local_problem(), Source(form), [state_of(problem.net)])


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "stacked": partial(Stacked, 3),
    "workers": partial(Workers, 2),
    "stacked in workers": lambda: Workers(2, Stacked(2)),
    "auto": partial(Auto, 2),
}


@EACH_FORM
@pytest.mark.parametrize("name", [*list(EXECUTORS)[:-1], pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("double_precision")
def test_every_executor_gives_equal_deltas_for_tree_inputs(form: str, name: str) -> None:
    tasks = tasks_of([2, 0, 1])
    executor = EXECUTORS[name]()
    try:
        actual, expected = results(executor, bench(form), tasks), results(Sequential(), bench(form), tasks)
    finally:
        executor.close()
    for (delta, loss, *counts), (other, other_loss, *other_counts) in zip(expected, actual, strict=True):
        assert delta.abs().max() > 1e-4
        assert torch.allclose(other, delta, rtol=0, atol=1e-12)
        assert other_loss == pytest.approx(loss, rel=1e-12)
        assert other_counts == counts


@EACH_FORM
def test_a_federation_on_tree_inputs_learns_and_resumes_with_the_same_bits(fit: Fit, form: str, tmp_path: Path) -> None:
    module = module_of(form)
    whole = fit(module, Given(form), rounds=2, name="whole")
    assert whole.callback_metrics["val/accuracy"] > 0.6
    fit(module_of(form), Given(form), rounds=1, name="half").save_checkpoint(tmp_path / "half.ckpt")
    again = module_of(form)
    fit(again, Given(form), rounds=2, name="rest", ckpt=str(tmp_path / "half.ckpt"))
    assert all(map(torch.equal, again.net.state_dict().values(), module.net.state_dict().values()))
    frames = [pd.read_csv(next(tmp_path.rglob(f"{name}*/**/metrics.csv"))) for name in ("whole", "rest")]
    assert frames[0]["val/accuracy"].iloc[-1] == frames[1]["val/accuracy"].iloc[-1]


@EACH_FORM
def test_predictions_equal_the_nets_with_and_without_a_data_module(fit: Fit, form: str) -> None:
    module, data = module_of(form), Given(form)
    trainer = fit(module, data, rounds=1)
    trainer.test(module, datamodule=data, verbose=False)
    inputs = data.transform.eval(data.resident.all_test.inputs)
    with torch.no_grad():
        expected = module.predict(module.submodel("a"), inputs)
    with_data: Any = trainer.predict(module, datamodule=data)
    plain = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    batch = inputs if isinstance(inputs, dict) else (inputs,)  # a tuple of inputs is wrapped in another tuple
    without: Any = plain.predict(module, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(with_data), expected)
    assert torch.equal(torch.cat(without), expected)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_onnx_export_of_predictions_refuses_several_inputs(form: str) -> None:
    with pytest.raises(ConfigurationError, match=r"inputs of one tensor for format onnx .* but got [({]") as error:
        FORMATS["onnx"].encode(FORMS[form](), lambda net, inputs: net(inputs), raw(form, 4, 0)[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("form", "format"),
    [*((form, "safetensors") for form in FORMS), pytest.param("tokens", "onnx", marks=pytest.mark.slow)],
)
def test_exported_cards_describe_the_inputs(fit: Fit, form: str, format: str, tmp_path: Path) -> None:
    module, data = module_of(form), Given(form)
    fit(module, data, rounds=1).test(module, datamodule=data, verbose=False)
    path = tmp_path / f"b.{format}"
    card = export_submodel(module, "b", path)
    loaded = hetfl.load(path, net=FORMS[form]) if format == "safetensors" else hetfl.load(path)
    inputs = data.transform.eval(data.resident.all_test.inputs)
    with torch.no_grad():
        assert torch.allclose(loaded(inputs), module.predict(module.submodel("b"), inputs), rtol=0, atol=1e-5)
    tokens = {"shape": [6], "dtype": "int64"}
    parts = {
        "tokens": tokens,
        "dict": {"tensors": {"tokens": tokens, "mask": {"shape": [6], "dtype": "bool"}}},
        "tuple": {"tensors": [tokens, [{"shape": [2], "dtype": "float32"}]]},
    }
    assert {name: value for name, value in card.input.items() if name != "normalisation"} == parts[form]


@EACH_FORM
def test_flops_are_counted_for_tree_inputs(form: str) -> None:
    inputs = taken(raw(form, 4, 0)[0], slice(2))
    heads = 2 * 8 * CLASSES + (2 * 8 * 2 if form == "tuple" else 0)
    assert flops_per_sample(FORMS[form](), inputs)[0] == heads


class Leading(MaskedNet):
    """A net whose channel means depend on the number of channels."""

    def logits(self, x_NC: Tensor) -> Tensor:
        return super().logits(x_NC - x_NC.mean(1, keepdim=True))


def test_nets_with_dict_inputs_that_do_not_nest_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="Expected the net at level b to be the leading channels"):
        fit(module_of("dict", net=Leading), Given("dict"))


@pytest.mark.parametrize(
    ("net", "form", "message"),
    [
        (lambda width=1.0: nn.Linear(6, 3), "tokens", r"level a to take inputs of int64 \(4, 6\) but got: .*dtype"),
        (TextNet, "dict", r"level a to take inputs of \{tokens: int64 \(4, 6\), mask: bool \(4, 6\)\} but got: "),
    ],
)
def test_nets_that_cannot_take_the_inputs_are_refused_in_one_line(fit: Fit, net: Any, form: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(module_of(form, net=net, levels={"a": Level("a")}), Given(form))
    assert "\n" not in str(error.value)


def test_flops_budgets_work_for_token_ids_and_refuse_several_inputs(fit: Fit) -> None:
    flops = Budgets("flops", [1.0, 0.5], sample_shape=[6], sample_type="int64")
    module = module_of("tokens", levels=flops)
    assert module.levels.allowances["b"].cost == 0.5 * module.levels.allowances["a"].cost
    fit(module, Given("tokens"), rounds=1)
    with pytest.raises(ConfigurationError, match="to take inputs of sample_shape .* but got"):
        module_of("tokens", levels=Budgets("flops", [1.0, 0.5], sample_shape=[6]))
    with pytest.raises(ConfigurationError, match="sample_type float or int64 but got 'text'"):
        Budgets("flops", [1.0], sample_shape=[6], sample_type="text")  # type: ignore[arg-type]
    other = module_of("dict", net=TextNet, levels=flops)
    with pytest.raises(ConfigurationError, match=r"of one tensor rather than \[\[6\], \[6\]\]"):
        fit(other, Given("dict"))


def test_a_folded_net_refuses_dict_inputs() -> None:
    with pytest.raises((TypeError, AttributeError)):
        FoldedNet(MaskedNet())({}, raw("dict", 4, 0)[0])
