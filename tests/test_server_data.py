"""The server's data: set aside before the partition, and given only to pieces that declare that they read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor

from hetfl.aggregators import HolderMean
from hetfl.data import Dirichlet, FeatureNoise, FederatedDataModule, LabelShards, TensorData
from hetfl.errors import ConfigurationError
from hetfl.hooks import Hook
from hetfl.piece import Facts
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
N = 400


def numbered(**changes: Any) -> FederatedDataModule:
    """Return prepared data in which the input of a sample is its number."""
    inputs = torch.arange(N, dtype=torch.float32)[:, None]
    targets = torch.arange(N) % 4
    samples = {"train_inputs": inputs, "train_targets": targets, "test_inputs": inputs, "test_targets": targets}
    arguments: dict[str, Any] = {"num_clients": 5, "partitioner": Dirichlet(0.5), "val_fraction": 0.1, **samples}
    data = TensorData(**{**arguments, **changes})
    data.setup()
    return data


def numbers(inputs: Tensor) -> list[int]:
    return [int(number) for number in inputs.flatten()]


def of_clients(data: FederatedDataModule) -> list[int]:
    return [number for client in range(data.num_clients) for number in numbers(data.client_data(client).inputs)]


def test_every_sample_has_exactly_one_owner() -> None:
    data = numbered(server_fraction=0.25)
    server, held_out = numbers(data.resident.server.inputs), numbers(data.resident.validation.inputs)
    assert len(server) == round(0.25 * (N - 40))
    assert sorted(server + held_out + of_clients(data)) == list(range(N))
    assert held_out == numbers(numbered().resident.validation.inputs)
    assert server == numbers(numbered(server_fraction=0.25).resident.server.inputs)
    assert server != numbers(numbered(server_fraction=0.25, seed=1).resident.server.inputs)
    assert f", {len(server)} at the server, 40 held out" in data.summary()
    assert data.unassigned == 0


def test_unassigned_samples_do_not_belong_to_the_server() -> None:
    data = numbered(server_fraction=0.25, partitioner=LabelShards(2), num_clients=6)
    assert data.unassigned > 0
    assert data.unassigned + sum(data.sizes) == N - 40 - 90


def test_by_default_there_is_no_server_data() -> None:
    data = numbered()
    assert data.server_data is None
    assert "server" not in data.summary()
    assert len(of_clients(data)) == N - 40


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (1.0, r"fraction \(server_fraction\) in \[0, 1\) but got 1.0"),
        (-0.1, r"fraction \(server_fraction\) in \[0, 1\) but got -0.1"),
        (1e-6, r"some of 360 samples \(server_fraction\) but a fraction of 1e-06 makes 0"),
    ],
)
def test_a_wrong_server_fraction_is_refused(fraction: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        numbered(server_fraction=fraction)


def test_server_batches_use_the_evaluation_transform_and_no_client_transform() -> None:
    plain, noisy = (small_data(server_fraction=0.1, client_transform=each) for each in (None, FeatureNoise(0.5)))
    for data in (plain, noisy):
        data.setup()
        server = data.server_data
        assert server is not None
        inputs, targets = server.batch(torch.tensor([3, 1]))
        raw = plain.resident.server
        assert torch.allclose(inputs, plain.transform.eval(raw.inputs[[3, 1]]).to(inputs), atol=1e-6)
        assert torch.equal(targets, raw.targets[[3, 1]])
    assert not torch.equal(plain.client_data(11).inputs.float(), noisy.client_data(11).inputs.float())


class Knowing(Hook):
    """Keeps the facts of its setup."""

    def setup(self, facts: Facts) -> None:
        self.facts = facts


class Reading(Knowing):
    """A hook that reads the server's data."""

    reads_server_data = True


class ReadingMean(HolderMean):
    """An aggregator that reads the server's data."""

    reads_server_data = True

    def setup(self, facts: Facts) -> None:
        self.facts = facts


def test_only_a_piece_that_declares_it_gets_server_data(fit: Fit) -> None:
    reading, knowing, mean = Reading(), Knowing(), ReadingMean()
    module = small_module(hooks=[reading, knowing], aggregator=mean)
    data = small_data(server_fraction=0.1)
    fit(module, data, rounds=1, limit_val_batches=0)
    assert knowing.facts.server_data is None
    for facts in (reading.facts, mean.facts):
        assert facts.server_data is not None
        assert len(facts.server_data) == len(data.resident.server)


@pytest.mark.parametrize("changes", [{"hooks": [Reading()]}, {"aggregator": ReadingMean()}], ids=["hook", "aggregator"])
def test_a_piece_that_needs_server_data_is_refused_without_it(fit: Fit, changes: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Expected data.server_fraction above 0 for Reading(Mean)?\(.*\), which"
    ):
        fit(small_module(**changes), rounds=1)
