"""Attacks: forged vectors by hand, chosen clients, colluding clients against NumPy, every configuration in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer

from hetfl.aggregators import CoordinateMedian, HolderMean, StackedProducts, ValueMean
from hetfl.analysis import load_values
from hetfl.attacks import (
    ALittleIsEnough,
    Attack,
    Backdoor,
    ClaimsWidest,
    Collusion,
    FreeRider,
    Gaussian,
    InnerProduct,
    LabelFlip,
    Scaling,
    SignFlip,
    hostile_clients,
)
from hetfl.cli import main
from hetfl.data import Digits, LabelNoise
from hetfl.errors import ConfigurationError
from hetfl.fleet import DiscountedUCB, Fixed
from hetfl.hooks import DeltaContext
from hetfl.piece import Facts
from hetfl.seeding import generator
from hetfl.selection import Uniform
from hetfl.value import FeatureInformation
from tests.conftest import small_module
from tests.demo_cases import CONFIGS
from tests.robust_cases import SHAPES, Array, cohort, played, spread
from tests.robust_cases import part_of_level as part

FILES = sorted(file.stem for file in (CONFIGS / "attack").glob("*.yaml"))


def forged(attack: Attack, client: int) -> torch.Tensor:
    attack.setup(Facts(sizes=(5,) * 10))
    whole = part("a", generator(0, "part"))
    context = DeltaContext(client, "a", 3, 0.1, whole, generator(0, "attack", client))
    return attack.on_delta(torch.tensor([3.0, 4.0], dtype=torch.float64), context)


def test_forged_vectors_have_their_values_by_hand() -> None:
    assert forged(SignFlip(2.0, clients=[4]), 4).tolist() == [-6.0, -8.0]
    assert forged(Scaling(10.0, clients=[4]), 4).tolist() == [30.0, 40.0]
    assert forged(FreeRider(clients=[4]), 4).tolist() == [0.0, 0.0]
    noise = torch.randn(2, generator=generator(0, "attack", 4), dtype=torch.float64)
    assert torch.allclose(forged(FreeRider(0.5, clients=[4]), 4), 0.5 * noise)
    assert torch.allclose(forged(Gaussian(2.0, clients=[4]), 4), 2.0 * 5.0 / 2**0.5 * noise)


@pytest.mark.parametrize("make", [SignFlip, Scaling, FreeRider, Gaussian])
def test_honest_clients_send_what_they_have(make: Callable[..., Attack]) -> None:
    assert forged(make(clients=[4]), 5).tolist() == [3.0, 4.0]


def test_a_share_draws_the_same_clients_for_all_attacks() -> None:
    drawn = hostile_clients(None, 0.3, 10)
    assert len(drawn) == 3
    attack, widest, labels = SignFlip(share=0.3), ClaimsWidest(Fixed(), share=0.3), LabelFlip(share=0.3)
    facts = Facts(sizes=(5,) * 10, levels=("a", "b"))
    attack.setup(facts)
    widest.setup(facts)
    assert attack.hostile == drawn
    assert {c for c in range(10) if labels.describe(c, 10) == "flipped labels"} == drawn
    assert widest.levels(0) == ["a" if client in drawn or client < 5 else "b" for client in range(10)]
    assert hostile_clients(None, 0.5, 10) > drawn
    with pytest.warns(UserWarning, match=r"A share of 0\.01 of 10 clients is none: no client is hostile"):
        assert hostile_clients(None, 0.01, 10) == frozenset()


def test_hostile_clients_and_noise_shares_are_drawn_once_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(seed: int, *names: str | int) -> torch.Generator:
        calls.append((seed, *names))
        return generator(seed, *names)

    monkeypatch.setattr("hetfl.attacks.hostile.generator", counted)
    monkeypatch.setattr("hetfl.data.label_noise.named_generator", counted)
    for transform in (LabelFlip(share=0.3), Backdoor(share=0.3), LabelNoise(between=(0.1, 0.4))):
        assert len({transform.describe(client, 311) for client in range(311)}) > 1
    assert sorted(calls) == [(0, "hostile clients", 311), (0, "label noise", 311)]


@pytest.mark.parametrize("levels", ["a" * 8, "abcabcab"])
def test_colluding_clients_send_what_numpy_makes_of_the_honest_updates(levels: str) -> None:
    clients, hostile = cohort(levels, seed=4), [1, 6]
    values = spread(clients)
    z = NormalDist().inv_cdf((6 - (8 // 2 + 1 - 2)) / 6)
    attacks: dict[Callable[..., Collusion], Callable[[Array, Array], Array]] = {
        ALittleIsEnough: lambda mean, deviation: mean - z * deviation,
        InnerProduct: lambda mean, deviation: -0.5 * mean,
    }
    for kind, forge in attacks.items():
        attack = kind(CoordinateMedian(1, most_bytes=0), clients=hostile)
        attack.setup(Facts(sizes=(1,) * 8))
        steps, holders = played(attack, clients)
        for name in ("kernel", "bias", "scale"):
            honest = np.delete(values[name], hostile, axis=0)
            with np.errstate(all="ignore"):
                mean = np.nan_to_num(np.nanmean(honest, axis=0))
                deviation = np.nan_to_num(np.nanstd(honest, axis=0))
            changed = values[name].copy()
            for k in hostile:
                changed[k] = np.where(np.isnan(changed[k]), np.nan, forge(mean, deviation))
            assert np.allclose(steps[name], np.nan_to_num(np.nanmedian(changed, axis=0)), atol=1e-7)
            assert np.array_equal(holders[name], (~np.isnan(changed)).sum(0))
    assert set(SHAPES) == set(steps)


def test_a_hostile_majority_stays_hostile() -> None:
    attack = ALittleIsEnough(HolderMean(), share=0.5)
    distances = [attack.distance(10 - hostile, hostile) for hostile in range(3, 9)]
    assert distances[:3] == pytest.approx([NormalDist().inv_cdf(share) for share in (4 / 7, 4 / 6, 4 / 5)])
    assert distances[3:] == pytest.approx([NormalDist().inv_cdf(share) for share in (3 / 4, 2 / 3, 1 / 2)])


def test_what_the_aggregator_under_attack_sends_beside_parts_is_counted() -> None:
    aggregator = StackedProducts({})
    attacked = InnerProduct(aggregator, share=0.25)
    aggregator.reset({})
    assert attacked.changes_frozen
    assert attacked.shared_bytes(0) == aggregator.shared_bytes(0)
    aggregator.shared_bytes = lambda client: 400 + client  # type: ignore[method-assign]
    assert attacked.shared_bytes(3) == 403


def test_the_aggregator_under_attack_may_ask_clients_and_value_them(fit: Callable[..., Trainer]) -> None:
    attacked = ALittleIsEnough(ValueMean(FeatureInformation()), share=0.25)
    trainer = fit(small_module(aggregator=attacked, selection=Uniform(12)), rounds=2, limit_val_batches=0)
    values = load_values(str(trainer.log_dir))
    assert set(values["measure"]) == {"FeatureInformation"}
    assert values.groupby("round").size().tolist() == [12, 12]
    assert attacked.asks_clients


def test_labels_are_flipped_and_images_patched_in_the_training_samples_of_hostile_clients_alone() -> None:
    clean, flipped = Digits(num_clients=4), Digits(num_clients=4, client_transform=LabelFlip(clients=[2]))
    backdoor = Backdoor(target=7, poisoned=0.5, size=2, clients=[2])
    patched = Digits(num_clients=4, client_transform=backdoor)
    for data in (clean, flipped, patched):
        data.setup()
    for client in range(4):
        before, turned, poisoned = (data.client_data(client) for data in (clean, flipped, patched))
        count = -(-len(before) // 2) if client == 2 else 0
        assert torch.equal(turned.targets, 9 - before.targets if client == 2 else before.targets)
        assert poisoned.targets[:count].tolist() == [7] * count
        assert torch.equal(poisoned.targets[count:], before.targets[count:])
        assert bool((poisoned.inputs[:count, ..., -2:, -2:] == poisoned.inputs.max()).all())
        assert torch.equal(poisoned.inputs[:count, ..., :-2, :], before.inputs[:count, ..., :-2, :])
        assert torch.equal(poisoned.inputs[count:], before.inputs[count:])
        for data in (flipped, patched):
            assert torch.equal(data.client_data(client, "test").inputs, clean.client_data(client, "test").inputs)
            assert torch.equal(data.client_data(client, "test").targets, clean.client_data(client, "test").targets)
    assert torch.equal(patched.resident.validation.inputs, clean.resident.validation.inputs)


@pytest.mark.parametrize("name", FILES)
def test_every_configuration_runs(name: str, tmp_path: Path) -> None:
    small = ["--model.net.hidden=[4,4,4,4]", "--data.num_clients=10", "--model.selection.clients_per_round=6"]
    short = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--final_test=false", "--plots=false"]
    stack = ["-c", "base", "-c", "data/digits", "-c", "method/heterofl", "-c", f"attack/{name}"]
    main(["fit", *stack, *small, *short, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    assert len(pd.read_csv(metrics)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignFlip(), "clients or share for SignFlip but got neither"),
        (lambda: SignFlip(clients=[1], share=0.2), "clients or share for SignFlip but got both"),
        (lambda: SignFlip(clients=[2.5]), r"a list of ids as clients for SignFlip but got \[2.5\]"),  # type: ignore[list-item]
        (lambda: LabelFlip(clients=["a"]), r"a list of ids as clients for LabelFlip but got \['a'\]"),  # type: ignore[list-item]
        (lambda: SignFlip(clients=0), "a list of ids as clients for SignFlip but got 0"),  # type: ignore[arg-type]
        (lambda: LabelFlip(share="x"), "share to be a number but got 'x'"),  # type: ignore[arg-type]
        (lambda: LabelFlip(share=1.5), r"share in \[0, 1\] for LabelFlip but got 1.5"),
        (lambda: Scaling(float("nan"), share=0.1), "a finite factor for Scaling but got nan"),
        (lambda: Backdoor(size=0, share=0.1), "size of at least 1 for Backdoor but got 0, 0.5, 0"),
        (lambda: ClaimsWidest(DiscountedUCB(), share=0.1), "does not learn for ClaimsWidest but got DiscountedUCB"),
        (lambda: InnerProduct(HolderMean(), 0.0, share=0.1), r"epsilon in \(0, 1e9\) for InnerProduct but got 0.0"),
        (lambda: forged(SignFlip(clients=[10]), 1), "hostile clients below 10 but got 10"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
