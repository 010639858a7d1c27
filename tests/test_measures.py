"""Measures of values: one contract for all, and each against NumPy, values by hand, and what it should notice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import SGD

from hetfl import value as values
from hetfl import wire
from hetfl.aggregators import ValueMean
from hetfl.data import IID, LabelNoise
from hetfl.errors import ConfigurationError
from hetfl.flower.clients import FlowerClients
from hetfl.flower.nodes import Nodes
from hetfl.local import Executor, LocalTraining, Sequential, Workers
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.question import ClientView, Question
from hetfl.selection import Uniform
from hetfl.testing import check_value
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from hetfl.value import (
    BetaReputation,
    FeatureComposite,
    FeatureInformation,
    GramDeterminant,
    Individual,
    LabelInformation,
    LossDrop,
    ParameterUncertainty,
    Reputation,
    Shapley,
    Value,
)
from hetfl.value.data_value import DataValue
from hetfl.value.feature_composite import composite
from hetfl.value.feature_information import Informative, information
from hetfl.value.features import penultimate, projected
from hetfl.value.gram_determinant import LogVolume, log_volume
from hetfl.value.parameter_uncertainty import Certainty, entropy_drop
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]
MEASURES = [
    each
    for name in values.__all__
    if inspect.isclass(each := getattr(values, name)) and issubclass(each, Value) and not inspect.isabstract(each)
]
VARIANTS: list[Callable[[], Value]] = [
    lambda: LossDrop("start"),
    lambda: Shapley("exact", "loss"),
    lambda: Reputation(of=LabelInformation()),
    lambda: BetaReputation(of=GramDeterminant(), threshold=2.0),
    lambda: GramDeterminant(of="net"),
]


@pytest.mark.parametrize("make", [*MEASURES, *VARIANTS], ids=lambda make: getattr(make, "__name__", "variant"))
def test_every_measure_fulfils_the_contract(make: Callable[[], Value]) -> None:
    check_value(make)


def test_the_volume_has_its_values_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    assert np.exp(log_volume(x, 0.0)) == pytest.approx(3.0)
    assert np.exp(log_volume(torch.cat([x, x]), 0.0)) == pytest.approx(6.0)  # twice the data: x 2^{d/2}
    assert 2 * log_volume(x, 1.0) == pytest.approx(2.833213, abs=1e-6)
    assert np.isfinite(log_volume(x[:1], 1.0))


def test_features_of_a_net_are_the_inputs_of_its_last_linear_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    inputs = torch.rand(4, 3)
    assert torch.equal(penultimate(net, inputs), net[:2](inputs))
    with pytest.raises(ConfigurationError, match="Expected a net with a linear layer"):
        penultimate(nn.Sequential(nn.ReLU()), inputs)


def test_the_entropy_of_parameters_has_its_value_by_hand() -> None:
    assert entropy_drop(torch.tensor([1.0, 0.1, 0.0]), 50, 1.0) == pytest.approx(2.861793, abs=1e-6)


def view(inputs: Tensor, targets: Tensor, net: nn.Module | None = None, seed: int = 0) -> ClientView:
    """Return a client with samples and a net."""

    def gradient(loss: Tensor) -> Tensor:
        assert net is not None
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(net.parameters()))])

    return ClientView([(inputs, targets)], 3, torch.Generator().manual_seed(seed), net, gradient)


def test_the_uncertainty_is_that_of_a_softmax_in_numpy_and_ignores_the_clients_labels() -> None:
    torch.manual_seed(0)
    net, inputs = nn.Linear(4, 3, bias=False).double(), torch.randn(20, 4, dtype=torch.float64)
    answer = Certainty(2.0, 1).answer(view(inputs, torch.zeros(20, dtype=torch.int64), net))
    w, random, total = net.weight.detach().numpy(), torch.Generator().manual_seed(0), np.zeros((3, 4))
    for x in inputs.numpy():
        scores = np.exp(w @ x)
        shares = scores / scores.sum()
        drawn = int(torch.multinomial(torch.from_numpy(shares)[None], 1, generator=random))
        total += np.outer(shares - np.eye(3)[drawn], x) ** 2
    assert float(answer) == pytest.approx(0.5 * np.log1p(total / 2.0).sum(), rel=1e-9)
    assert float(Certainty(2.0, 1).answer(view(inputs, torch.ones(20, dtype=torch.int64), net))) == float(answer)
    # Batches add gradients before they square them; the expectation is that of single samples.
    few, many = (
        np.mean([float(Certainty(50.0, batch).answer(view(inputs, torch.ones(20), net, seed))) for seed in range(200)])
        for batch in (1, 10)
    )
    assert few == pytest.approx(many, rel=0.05)


def test_volumes_are_of_features_with_the_scale_of_all_clients() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(12, 5)
    question = LogVolume(3, 4, (0.1, 0.2, 0.3), (1.0, 2.0, 0.5), 1.5)
    x = (projected(inputs, 3, 4).numpy() - [0.1, 0.2, 0.3]) / [1.0, 2.0, 0.5]
    expected = 0.5 * np.log(np.linalg.det(x.T @ x + 1.5 * np.eye(3)))
    assert float(question.answer(view(inputs, torch.zeros(12)))) == pytest.approx(expected, rel=1e-9)


def test_the_composite_is_that_of_numpy() -> None:
    random = np.random.default_rng(0)
    of_clients = [random.normal(k, 1 + k, (20 + k, 3)) for k in range(3)]
    sums = [torch.tensor([len(x), *x.sum(0), *(x**2).sum(0)]) for x in of_clients]
    everything = np.concatenate(of_clients)
    for x, each in zip(of_clients, sums, strict=True):
        gap = (x.mean(0) - everything.mean(0)) ** 2
        expected = ((0.3 * x.var(0) - 0.7 * gap) / everything.var(0)).mean()
        assert composite(each, torch.stack(sums).sum(0), 0.3) == pytest.approx(expected, rel=1e-9)
    assert composite(sums[0], sums[0], 0.3) == pytest.approx(0.3)


def test_information_is_that_of_a_table_of_counts_and_near_zero_without_a_relation() -> None:
    x, y = torch.tensor([0.0, 1.0, 2.0, 3.0] * 3), torch.tensor([0, 0, 1, 1] * 3)
    joint = np.array([[6, 0], [0, 6]])
    plain = 2 * np.log(2) - np.log(2)
    correction = ((2 - 1) + (2 - 1) - (np.count_nonzero(joint) - 1)) / (2 * 12)
    assert information(x, y, 2) == pytest.approx(plain + correction)
    random = torch.Generator().manual_seed(0)
    noise = [
        information(torch.rand(200, generator=random), torch.randint(4, (200,), generator=random), 5) for _ in range(50)
    ]
    assert abs(np.mean(noise)) < 0.01
    assert information(torch.rand(9), torch.zeros(9, dtype=torch.int64), 3) == pytest.approx(0.0)


def test_beta_reputations_count_good_updates() -> None:
    measure = BetaReputation()
    measure.setup(Facts(sizes=[3] * 4, parameters={"w": torch.zeros(2)}))
    for round in range(2):
        measure.begin_round(round, 0.1)
        for client, update in enumerate([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]]):
            measure.observe(DenseUpdate(torch.tensor(update)), Part({"w": (slice(0, 2),)}), Report(client, "a", 3, 0.5))
        measure.end_round(round)
    # Cosines without the client: -.316, 0, -.949: none is above 0. Client 3 never reports.
    assert list(measure.of_round().values()) == pytest.approx([0.25, 0.25, 0.25, 0.5])
    assert (measure.good, measure.bad) == ([0, 0, 0, 0], [2, 2, 2, 0])


class Watch(DataValue):
    """A measure that keeps the questions' answers."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question

    def measured(self, clients: Sequence[int], probe: Any) -> dict[int, float]:
        return {client: float(numbers[0]) for client, numbers in probe.answers(clients, self.question).items()}


class Broken(LogVolume):
    """A question whose answer is not finite."""

    def answer(self, client: ClientView) -> Tensor:
        return torch.tensor([float("nan")])


def test_answers_are_charged_and_wrong_ones_are_left_out(fit: Fit) -> None:
    data = small_data()
    data.setup()

    def round_with(*measures: Value) -> tuple[dict[str, float], Any]:
        module = small_module(measures=list(measures))
        trainer = fit(module, data, rounds=1, limit_val_batches=0)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}, module

    plain, _ = round_with()
    asked, module = round_with(GramDeterminant(features=4), LabelInformation())
    clients = list(module.measures.named["GramDeterminant"].values)
    assert len(clients) == 4
    extra = asked["comm/up_bytes"] - plain["comm/up_bytes"]
    assert extra == 4 * sum(wire.dense_size(numbers) for numbers in (9, 1, 1))
    assert asked["comm/down_bytes"] == plain["comm/down_bytes"]  # a client that was asked has the model already
    samples = sum(data.sizes[client] for client in clients)
    features = 2 * 2.0 * samples * 4 * (64 + 4)
    levels, levels_of = module.levels.flops, module.assignment.level
    passes = sum(levels[levels_of(client, 0)][False] * data.sizes[client] for client in clients)
    assert asked["compute/flops_total"] - plain["compute/flops_total"] == pytest.approx(features + passes)
    with pytest.warns(UserWarning, match="no answer of client .* to Broken: not finite numbers"):
        _, module = round_with(Watch(Broken(1, 0, (0.0,), (1.0,), 1.0)))
    assert module.measures.named["Watch"].values == {}


def test_measures_notice_noise_on_digits(fit: Fit) -> None:
    def trained(noise: LabelNoise | None) -> dict[str, dict[int, float]]:
        measures: list[Value] = [LabelInformation(), FeatureInformation(), FeatureComposite(), GramDeterminant()]
        local = LocalTraining(6, 10, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9))
        module = small_module(measures=measures, selection=Uniform(12), local=local, levels=small_levels(1.0))
        fit(module, small_data(partitioner=IID(), client_transform=noise), rounds=3, limit_val_batches=0)
        return {name: dict(each.values) for name, each in module.measures.named.items()}  # type: ignore[attr-defined]

    clean, noisy = trained(None), trained(LabelNoise([0.0, 1.0]))
    for name in ("LabelInformation", "FeatureInformation"):
        of_clean, of_noisy = ([noisy[name][client] for client in range(first, 12, 2)] for first in (0, 1))
        assert np.mean(of_noisy) < np.mean(of_clean) - 0.05, name
    for name in ("GramDeterminant", "FeatureComposite"):  # they do not look at labels
        assert noisy[name] == clean[name]


def test_questions_are_refused_on_flower() -> None:
    for changes in ({"measures": [GramDeterminant()]}, {"aggregator": ValueMean(Reputation(of=LabelInformation()))}):
        clients = FlowerClients(small_module(**changes), cast(Nodes, None))
        with pytest.raises(ConfigurationError, match=r"no questions to clients on Flower but got .*, which asks them"):
            clients.begin()


def test_processes_give_the_same_answers(fit: Fit, tmp_path: Path) -> None:
    def written(executor: Executor, name: str) -> bytes:
        measures: list[Value] = [FeatureComposite(), GramDeterminant(), ParameterUncertainty(), LabelInformation()]
        module = small_module(measures=measures, executor=executor)
        return (Path(str(fit(module, rounds=2, name=name, limit_val_batches=0).log_dir)) / "values.csv").read_bytes()

    assert written(Sequential(), "one") == written(Workers(2), "several")


def test_measures_are_refused_where_they_cannot_work(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match=r"data.server_fraction above 0 for Individual\(metric=score\), which"):
        fit(small_module(measures=[Individual()]), rounds=1)
    with pytest.raises(ConfigurationError, match="features of at least 1 and ridge above 0 but got 0, 1.0"):
        GramDeterminant(features=0)
    with pytest.raises(ConfigurationError, match="inputs of floating-point numbers to make features of but got"):
        projected(torch.zeros(2, 3, dtype=torch.int64), 2, 0)
    with pytest.raises(ConfigurationError, match="one class per sample for a measure of labels but got targets of"):
        Informative(2, 0, 3).answer(view(torch.rand(4, 2), torch.rand(4, 2)))
