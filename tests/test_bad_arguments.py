"""Wrong arguments and broken user classes are refused in one line that names them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Trainer
from torch import Tensor, nn

import hetfl.methods
from hetfl import FedAvg, FederatedModule, HeteroFL, Level
from hetfl.aggregators import HolderMean, SampleMean
from hetfl.aggregators.per_model import Aggregators
from hetfl.compression import Compressor, Context, ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.hooks import ClipDelta
from hetfl.levels.level_set import LevelSet
from hetfl.local import LocalTraining, Proximal
from hetfl.models import MLP
from hetfl.parts import Rolling
from hetfl.selection import Everyone, Probe, Uniform
from hetfl.updates import DenseUpdate
from tests.conftest import small_data, small_levels, small_module, small_net

Fit = Callable[..., Trainer]


def refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": {"a": 1.0}}, "a dict of Level by name or a Budgets as levels of HeteroFL but got float for 'a'"),
        ({"levels": [Level("a")]}, "as levels of HeteroFL but got list"),
        ({"uplink": TopK(0.1)}, "Expected an ErrorFeedback as uplink of HeteroFL but got TopK"),
        ({"local": {"epochs": 1}}, "Expected a LocalTraining as local of HeteroFL but got dict"),
        ({"selection": 10}, "Expected a Selection as selection of HeteroFL but got int"),
        ({"aggregator": HolderMean}, "Expected an Aggregator as aggregator .* but got the class HolderMean"),
        ({"parts": Rolling}, "Expected a PartRule as parts of HeteroFL but got the class Rolling"),
        ({"objective": "regression"}, "Expected an Objective as objective of HeteroFL but got str"),
        ({"hooks": ClipDelta(1.0)}, "Expected a list of Hook as hooks of HeteroFL but got ClipDelta"),
        ({"hooks": [ClipDelta(1.0), TopK(0.1)]}, "a list of Hook as hooks of HeteroFL but got TopK in it"),
        ({"personal": "classifier.*"}, "a Personal or a list of str as personal of HeteroFL but got str"),
        ({"selction": Uniform(2)}, "arguments of HeteroFL but got 'selction': did you mean 'selection'?"),
    ],
)
def test_wrong_module_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    refused(lambda: small_module(**arguments), message)


def test_wrong_arguments_of_other_constructors_are_refused() -> None:
    level: Any = Level
    refused(lambda: level("a", widht=0.5), "arguments of Level but got 'widht': did you mean 'width'?")
    refused(lambda: small_data(num_clinets=3), "arguments of Digits but got 'num_clinets': did you mean 'num_clients'?")
    refused(lambda: small_data(partitioner="iid"), "Expected a Partitioner as partitioner of Digits but got str")
    local: Any = LocalTraining
    refused(lambda: local(penalty=0.1), "Expected a Penalty as penalty of LocalTraining but got float")
    feedback: Any = ErrorFeedback
    refused(lambda: feedback(0.1), "Expected a Compressor as compressor of ErrorFeedback but got float")
    assert local(2, penalty=Proximal(0.1)).penalty is not None


def test_the_command_line_finds_the_settings_of_every_method() -> None:
    """jsonargparse reads them off the source of constructors. A setting that it does not find is lost from a run."""

    def settings(kind: type) -> set[str]:
        return set(ArgumentParser().add_class_arguments(kind, fail_untyped=False))

    assert len(names := settings(FederatedModule)) > 20
    for module in pkgutil.iter_modules(hetfl.methods.__path__, "hetfl.methods."):
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and issubclass(kind, FederatedModule):
                assert names - settings(kind) <= {"personal"}, kind  # Ditto sets it


def test_a_checked_class_keeps_its_signature() -> None:
    assert list(inspect.signature(Level).parameters) == ["name", "width", "depth", "density", "rank"]
    assert inspect.getfullargspec(FedAvg.__init__).args[:3] == ["self", "net", "levels"]
    assert inspect.signature(FedAvg).parameters["seed"].default == 0


class Lazy(nn.Module):
    """A net whose first layer learns its input size from the data."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


class Fixed(nn.Module):
    """A net that takes a width and ignores it."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (small_net(), "a class or function as net, .* but got an object of ConvNet"),
        ("ConvNet", "a class or function as net, .* but got str"),
        (lambda width: [width], "Expected a net that is a torch.nn.Module but got list"),
        (Lazy, r"layers that are given their sizes but got 'layers.1', a LazyLinear, in Lazy"),
        (
            partial(MLP, in_channls=64),  # type: ignore[call-arg]
            "arguments that the net takes but got 'in_channls': did you mean 'in_channels'?",
        ),
    ],
)
def test_nets_that_cannot_work_are_refused(net: Any, message: str) -> None:
    refused(lambda: small_module(net=net), message)


def test_a_net_that_ignores_its_width_gives_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"smaller at level c, of width 0.25, but got Fixed of one size: does it use"):
        LevelSet(Fixed, small_levels(1.0, 0.5, 0.25), seed=0)
    LevelSet(Fixed, small_levels(1.0, 1.0), seed=0)
    LevelSet(small_net, small_levels(1.0, 0.99, 0.5), seed=0)  # at 0.99 the net has as many channels as at 1


def test_a_type_error_inside_the_net_is_not_replaced() -> None:
    def net(*, width: float = 1.0) -> nn.Module:
        return nn.Linear(64, 10, biass=False)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="biass"):
        small_module(net=net)


class Chosen(Uniform):
    """Selects the given clients."""

    def __init__(self, chosen: Any) -> None:
        super().__init__(2)
        self.chosen = chosen

    def select(self, round: int, probe: Probe) -> list[int]:
        return self.chosen  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([0, 99], "clients within reach, those of probe.clients, from Chosen.select but got 99 in round 1"),
        ([-1], "clients within reach, .* but got -1 in round 1"),
        ([3, 1, 3], "every client once from Chosen.select but got 3 2 times in round 1"),
        (None, "a list of clients' ids from Chosen.select but got NoneType"),
        ([1.0], r"a list of clients' ids from Chosen.select but got \[1.0\]"),
    ],
)
def test_invalid_cohorts_of_a_selection_are_refused(chosen: Any, message: str) -> None:
    refused(lambda: Chosen(chosen).cohort(0, Everyone(12)), message)


def test_client_ids_may_be_tensors() -> None:
    assert Chosen(torch.tensor([3, 1])).cohort(0, Everyone(12)) == [3, 1]


def test_a_run_checks_the_cohort_and_the_aggregated_step(fit: Fit) -> None:
    refused(lambda: fit(small_module(selection=Chosen([0, 12])), rounds=1), "Chosen.select but got 12 in round 1")
    spoilt = Spoilt(lambda steps, holders: steps)
    refused(lambda: fit(small_module(aggregator=spoilt), rounds=1), "Spoilt.compute but got dict")


class Spoilt(HolderMean):
    """Returns the result of a function of the mean and its holders."""

    def __init__(self, spoil: Callable[[dict[str, Tensor], dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self.spoil = spoil

    def compute(self) -> Any:
        return self.spoil(*super().compute())


FIRST = r"'w' from Spoilt.compute but got"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda steps, holders: None, "two dicts, steps and holders, from Spoilt.compute but got NoneType"),
        (lambda steps, holders: steps, "from Spoilt.compute but got dict"),
        (lambda steps, holders: (steps, holders, 0), "from Spoilt.compute but got 3 values"),
        (lambda steps, holders: ({}, holders), f"Expected a step of .* for {FIRST} NoneType"),
        (lambda steps, holders: ({k: v[:1] for k, v in steps.items()}, holders), rf"{FIRST} torch.float32 \(1, 3\)"),
        (lambda steps, holders: ({k: v.double() for k, v in steps.items()}, holders), f"{FIRST} torch.float64"),
        (lambda steps, holders: (steps, {k: v[:1] for k, v in holders.items()}), f"Expected holders of .* {FIRST}"),
    ],
)
def test_invalid_results_of_an_aggregator_are_refused(spoil: Any, message: str) -> None:
    aggregators = Aggregators(Spoilt(spoil))
    aggregators.reset([{"w": torch.zeros(4, 3)}], frozenset())
    refused(lambda: aggregators.compute(lambda model, steps, holders: steps), message)


class Made(Compressor):
    """Returns the result of a function of the vector."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make = make

    def apply(self, p_D: Tensor, context: Context) -> Any:
        return self.make(p_D)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p_D: p_D, r"an Update \(hetfl.updates\) from Made.apply but got Tensor"),
        (lambda p_D: None, "from Made.apply but got NoneType"),
        (lambda p_D: DenseUpdate(p_D[1:]), "an update of 50 entries from Made.apply but got one of 49"),
        (lambda p_D: DenseUpdate(p_D.mul_(0.5)), "Made.apply to leave its vector as it is but got it changed in place"),
    ],
)
def test_invalid_results_of_a_compressor_are_refused(make: Any, message: str) -> None:
    refused(lambda: Made(make).compress(torch.ones(50), lr=0.1), message)
    feedback, index = ErrorFeedback(Made(make)), {"w": (slice(0, 50),)}
    refused(lambda: feedback.prepare(0, torch.ones(50), index=index, round=0, lr=0.1), message)


def test_fedavg_with_several_sizes_equals_heterofl_without_label_rules(fit: Fit) -> None:
    settings = {"rounds": 2, "limit_val_batches": 0}
    fedavg = small_module(FedAvg)
    heterofl = small_module(HeteroFL, label_rules=False, aggregator=SampleMean())
    for number, module in enumerate((fedavg, heterofl)):
        fit(module, name=f"run{number}", **settings)
    assert all(torch.equal(a, b) for a, b in zip(fedavg.parameters(), heterofl.parameters(), strict=True))


def test_fedavg_with_several_sizes_logs_that_means_are_over_holders(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), caplog.at_level("INFO", "lightning.pytorch"):  # the command line raises the level
        fit(small_module(FedAvg), rounds=1, limit_val_batches=0)
        fit(small_module(FedAvg, levels=small_levels(1.0)), rounds=1, limit_val_batches=0, name="one")
        fit(small_module(HeteroFL), rounds=1, limit_val_batches=0, name="other")
    notes = [record.message for record in caplog.records if "several sizes" in record.message]
    assert notes == ["FedAvg with 3 levels of several sizes: every entry's mean is over the clients that hold it"]
