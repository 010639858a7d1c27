"""What values and the server's samples are used for: selection, a filter, FedDU, and data for a fair comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from hetfl import FedAvg, FederatedModule
from hetfl.aggregators import SampleMean, ValueFilter
from hetfl.data import Dirichlet
from hetfl.errors import ConfigurationError
from hetfl.hooks import FedDU
from hetfl.hooks.fed_du import divergence, server_share
from hetfl.part import Part
from hetfl.piece import Facts
from hetfl.selection import ByValue, Uniform
from hetfl.submodel import parameters_of
from hetfl.testing import check_aggregator, check_selection
from hetfl.testing.selections import Answers
from hetfl.testing.values import DataProbe, Samples
from hetfl.types import Report
from hetfl.updates import DenseUpdate
from hetfl.value import GramDeterminant, LossDrop, Value
from tests.conftest import small_data, small_levels, small_module

Fit = Callable[..., Trainer]


class Given(Value):
    """Values that are given."""

    def __init__(self, values: Mapping[int, float]) -> None:
        self.values = dict(values)

    def of_round(self) -> dict[int, float]:
        return self.values


def test_selection_by_value_fulfils_the_contract() -> None:
    check_selection(lambda: ByValue(3, LossDrop()))
    check_selection(lambda: ByValue(3, LossDrop(), explore=0.0))
    with pytest.raises(ConfigurationError, match=r"explore in \[0, 1\] but got 2"):
        ByValue(explore=2)


def test_the_most_valuable_clients_are_selected_and_some_are_drawn() -> None:
    policy = ByValue(4, Given({0: 9.0, 1: 1.0, 2: 5.0, 3: -2.0}), explore=0.0)
    policy.setup(Facts(sizes=(5,) * 10, cohort=4))
    policy.begin_round(0, 0.1)
    assert policy.select(0, Answers(0, 0)) == uniform(policy, 0)  # before there are values, clients are drawn
    policy.end_round(0)
    # Client 4 and others without a value have the mean, 3.25; ties by id.
    assert policy.select(1, Answers(0, 1)) == [0, 2, 4, 5]
    policy.explore = 0.3
    drawn = uniform(policy, 1)[:2]  # the first numbers of the same generator
    cohort = policy.select(1, Answers(0, 1))
    assert [client for client in cohort if client not in drawn] == [
        client for client in (0, 2, 4, 5) if client not in drawn
    ][:2]
    assert {*drawn} < {*cohort}
    assert len(cohort) == 4


def test_the_first_clients_of_a_cohort_are_drawn_with_the_share_of_the_cohort() -> None:
    policy = ByValue(4, Given({client: 1.0 + client for client in range(10)}), explore=0.25)
    policy.setup(Facts(sizes=(5,) * 10, cohort=4))
    policy.end_round(0)
    first = [policy.select(round, Answers(0, round))[0] for round in range(1, 401)]
    # The first one is the highest, but for a quarter that is drawn: of these, 0.1 are the highest, too.
    assert first.count(9) / 400 == pytest.approx(0.75 * 0.9 + 0.1, abs=0.07)


def uniform(policy: ByValue, round: int) -> list[int]:
    other = Uniform(policy.clients_per_round)
    other.setup(Facts(sizes=(5,) * 10))
    return other.select(round, Answers(0, round))


def test_the_filter_leaves_out_clients_of_low_value() -> None:
    check_aggregator(ValueFilter)
    mean, tensors = ValueFilter(Given({0: 2.0, 1: 0.9, 2: -1.0}), least=0.7), {"w": torch.zeros(3)}
    held = [[0, 1], [0, 2], [0, 1], [0, 1]]  # client 3 has no value, and counts
    for round in range(2):
        mean.begin_round(round, 0.1)
        mean.reset(tensors)
        for client, entries in enumerate(held):
            part = Part({"w": (torch.tensor(entries),)})
            mean.update(DenseUpdate(torch.full((2,), client + 1.0)), part, Report(client, "a", 10 + client, 0.5))
        step, holders = mean.compute()
        if round == 0:  # before there are values, all count by their samples
            assert step["w"][0] == pytest.approx((10 * 1 + 11 * 2 + 12 * 3 + 13 * 4) / 46)
        mean.end_round(round)
    assert step["w"].tolist() == pytest.approx([(10 * 1 + 13 * 4) / 23, (10 * 1 + 13 * 4) / 23, 0.0])
    assert float(holders["w"][2]) == 0.0  # its only holder is left out, so the entry keeps its value
    assert mean.columns()["value/left_out"] == 2
    with pytest.raises(ConfigurationError, match=r"least in \(0, 1\] but got 0"):
        ValueFilter(least=0)


def test_the_filter_keeps_all_clients_if_no_value_is_above_zero() -> None:
    mean, tensors, part = ValueFilter(Given({0: -0.5, 1: 0.0})), {"w": torch.zeros(1)}, Part({"w": (slice(0, 1),)})
    for round in range(2):
        mean.begin_round(round, 0.1)
        mean.reset(tensors)
        for client in range(3):
            mean.update(DenseUpdate(torch.full((1,), client + 1.0)), part, Report(client, "a", 10, 0.5))
        assert mean.compute()[0]["w"].item() == 2.0
        mean.end_round(round)
    assert mean.columns()["value/left_out"] == 0


def test_shares_of_the_server_have_their_values_by_hand() -> None:
    everyone, server, cohort = (torch.tensor(each) for each in ([0.5, 0.5], [0.6, 0.4], [0.9, 0.1]))
    divergences = divergence(server, everyone), divergence(cohort, everyone)
    assert divergences == pytest.approx((0.007299, 0.146793), abs=1e-6)
    alpha = server_share(0.4, (100, 900), divergences)
    assert alpha == pytest.approx(0.414503, abs=1e-6)
    assert alpha * 0.99**50 == pytest.approx(0.250777, abs=1e-6)
    assert server_share(0.4, (100, 900), (0.0, divergences[1])) == pytest.approx(0.6)  # 1 - accuracy
    assert server_share(0.4, (0, 900), divergences) == 0.0
    assert server_share(0.4, (100, 900), (0.0, 0.0)) == 0.0
    assert divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == pytest.approx(1.0)


def hook_with(**changes: Any) -> FedDU:
    """Return a hook in a round with two clients; the model after training on the server's samples has 3 everywhere."""

    def utility(tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        assert tensors["b"].tolist() == [3.0]  # the float buffer after the mean
        return 0.4, float((tensors["w"] - 1.0).square().sum())

    def tuning(
        tensors: Mapping[str, Tensor], lr: float, epochs: int, batch_size: int, random: torch.Generator
    ) -> dict[str, Tensor]:
        assert tensors["w"].tolist() == [0.5, 0.0]  # the model after the mean
        assert tensors["b"].tolist() == [3.0]
        assert (lr, epochs, batch_size) == (0.1, 2, 20)
        return {"w": torch.full((2,), 3.0)}

    hook = FedDU(epochs=2, **changes)
    net = nn.Module()
    net.w = nn.Parameter(torch.zeros(2))
    net.register_buffer("b", torch.full((1,), 2.0))
    facts = Facts((5, 5), 3, ("a",), 9, parameters_of(net), classes=3, models=nn.ModuleList([net]))
    hook.setup(replace(facts, server_data=Samples(), utility=utility, tuning=tuning))
    hook.begin_round(2, 0.1)
    hook.learn({0: [4.0, 0.0, 1.0], 1: [0.0, 3.0, 2.0]})
    for client in (0, 1):
        hook.observe(DenseUpdate(torch.zeros(2)), Part({"w": (slice(0, 2),)}), Report(client, "a", 5, 0.5))
    return hook


def test_the_server_moves_the_mean_model_by_its_share() -> None:
    hook = hook_with()
    hook.learn({7: [0.0, 0.0, 9.0]})  # a client that does not take part, but is known
    everyone, cohort, own = (torch.tensor(each) for each in ([4.0, 3, 12], [4.0, 3, 3], [10.0, 0, 0]))
    of_own, of_cohort = (divergence(each / each.sum(), everyone / everyone.sum()) for each in (own, cohort))
    alpha = 0.6 * 10 * of_cohort / (10 * of_cohort + 10 * of_own) * 0.99**2
    step = hook.on_step(0, {"w": torch.tensor([0.5, 0.0]), "b": torch.ones(1)}, {"w": torch.ones(2)})
    assert hook.alpha == pytest.approx(alpha)
    assert step["w"].tolist() == pytest.approx([0.5 + alpha * 2.5, alpha * 3.0])
    assert step["b"].tolist() == [1.0]
    for changes in ({"worst": 1e-9}, {"least": 0.99}):
        refused = hook_with(**changes)
        given = {"w": torch.tensor([0.5, 0.0]), "b": torch.ones(1)}
        assert refused.on_step(0, given, {"w": torch.ones(2)}) is given
        assert refused.columns() == {"feddu/alpha": 0.0}


def test_label_counts_are_those_of_the_clients() -> None:
    hook, probe = hook_with(), DataProbe()
    hook.learn({}, anew=True)
    hook.inquire(0, [0], probe)
    targets = [next(targets for _, targets in probe.view(client).batches) for client in probe.clients]
    assert hook.counts == {k: each.bincount(minlength=3).tolist() for k, each in enumerate(targets)}
    hook.inquire(1, [1], probe)
    assert len(probe.asked) == 6  # each client once


def test_label_counts_of_other_data_are_forgotten_and_those_of_older_checkpoints_read() -> None:
    hook = hook_with()
    state, mixes = hook.state_dict(), hook.mixes()
    assert {name: each.shape for name, each in state.items()} == {"clients": (2,), "counts": (2, 3)}
    for old in (state, {"counts": {0: [4.0, 0.0, 1.0], 1: [0.0, 3.0, 2.0]}}):
        hook.load_state_dict(old)
        assert all(torch.equal(a, b) for a, b in zip(hook.mixes(), mixes, strict=True))
    hook.setup(hook.facts)
    assert len(hook.counts) == 2
    for changes in ({"sizes": (5, 5, 5)}, {"classes": 4}):
        hook.load_state_dict(state)
        hook.setup(replace(hook.facts, **changes))
        assert hook.counts == {}
        assert hook.mixes()[1].tolist() == [0.0] * hook.facts.classes


def test_the_server_leaves_the_copies_of_smaller_levels_alone(fit: Fit) -> None:
    levels, data = small_levels(1.0, 0.5), small_data(server_fraction=0.2)
    module = small_module(levels=levels, per_level=["*.norm.*"], hooks=[FedDU(least=0.0)])
    trainer = fit(module, data, rounds=3, limit_val_batches=0)
    assert float(trainer.callback_metrics["feddu/alpha"]) > 0.0


def test_a_resumed_run_of_feddu_and_selection_by_value_has_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    def module() -> FederatedModule:
        selection = ByValue(4, GramDeterminant(4))
        return small_module(
            FedAvg, levels=small_levels(1.0), hooks=[FedDU()], selection=selection, aggregator=SampleMean()
        )

    data = small_data(server_fraction=0.2)
    whole, first, second = module(), module(), module()
    trainer = fit(whole, data, rounds=4, name="whole", limit_val_batches=0)
    assert float(trainer.callback_metrics["feddu/alpha"]) > 0.0
    fit(first, data, rounds=2, name="begun", limit_val_batches=0).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, data, rounds=4, name="resumed", limit_val_batches=0, ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


class Targets(Samples):
    """Server data with given targets."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def batch(self, positions: Tensor) -> tuple[Any, Tensor]:
        return torch.zeros(len(positions), 1), self.targets[positions]


def test_feddu_is_refused_where_it_cannot_work(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="data.server_fraction above 0 for FedDU"):
        fit(small_module(hooks=[FedDU()]), rounds=1)
    with pytest.raises(ConfigurationError, match="classes as targets for FedDU, which compares labels, but got others"):
        FedDU().setup(Facts((5,), server_data=Samples()))
    for shape, dtype in (((10, 3), torch.int64), ((10,), torch.float32)):
        given = replace(hook_with().facts, server_data=Targets(torch.zeros(shape, dtype=dtype)))
        with pytest.raises(ConfigurationError, match=r"one class per sample as targets for FedDU but got torch\."):
            FedDU().setup(given)
    with pytest.raises(ConfigurationError, match="one global model for FedDU but got an update of model 1"):
        hook_with().observe(DenseUpdate(torch.zeros(1)), Part({}), Report(0, "a", 5, 0.5, model=1))
    with pytest.raises(ConfigurationError, match=r"scale above 0, decay in \(0, 1\]"):
        FedDU(decay=0)
    with pytest.raises(ConfigurationError, match=r"least in \[0, 1\) and worst above 0 for FedDU but got 1, 3.0"):
        FedDU(least=1)


def test_the_servers_samples_may_be_dealt_to_the_clients() -> None:
    def drawn(**changes: Any) -> Any:
        data = small_data(partitioner=Dirichlet(0.5), server_fraction=0.3, **changes)
        data.setup()
        return data

    apart, dealt = drawn(), drawn(server_to_clients=True)
    count = len(apart.resident.server)
    assert dealt.server_data is None
    gains = [more - less for more, less in zip(dealt.sizes, apart.sizes, strict=True)]
    assert sum(gains) == count
    assert max(gains) - min(gains) <= 1
    own = {each.numpy().tobytes() for each in apart.client_data(3).inputs}
    assert own <= {each.numpy().tobytes() for each in dealt.client_data(3).inputs}
