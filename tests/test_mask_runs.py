"""Runs with masks that follow from the weights: contract, resuming, costs, wrong settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from hetfl import FederatedModule, Level
from hetfl.analysis import holders
from hetfl.clustering import IFCA
from hetfl.compression import ErrorFeedback, TopK
from hetfl.errors import ConfigurationError
from hetfl.fleet import Dynamic
from hetfl.local import Workers
from hetfl.parts import (
    ClientImportance,
    DynamicMask,
    GreedyMask,
    HuntedMask,
    PartRule,
    PersonalMask,
    RankedMask,
    RewoundMask,
    ThresholdMask,
    VotedMask,
)
from hetfl.parts.growth import ByClients, ByServer, OwnMasks, Posterior, RandomGrowth
from hetfl.parts.mask_rule import MaskRule
from hetfl.pruning import Cubic
from hetfl.pruning.criteria import Gradient, Movement, NormScale, SquaredTaylor
from hetfl.selection import Uniform
from hetfl.testing import check_part_rule
from hetfl.updates import DenseUpdate
from hetfl.wire import encode
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
SPARSE = {"a": Level("a"), "b": Level("b", density=0.3)}
EMPTY = {"a": Level("a"), "b": Level("b", density=1e-4)}
RULES: dict[str, Callable[[], PartRule]] = {
    "taylor": lambda: RankedMask(SquaredTaylor()),
    "movement": lambda: RankedMask(Movement("round"), "erk", every=2),
    "moved": lambda: RankedMask(Movement(), complement=True),
    "purge": lambda: RankedMask(scope="global", schedule=Cubic(), shrink=True, erase=True),
    "complement": lambda: RankedMask(complement=True),
    "random": lambda: DynamicMask(RandomGrowth(), every=1),
    "server": lambda: DynamicMask(ByServer(samples=20), every=1),
    "clients": lambda: DynamicMask(ByClients(), every=1),
    "posterior": lambda: DynamicMask(Posterior(), every=1),
    "own": lambda: DynamicMask(OwnMasks(), every=1),
    "importance": lambda: ClientImportance(every=2),
    "personal": lambda: PersonalMask(step=0.2),
    "hybrid": lambda: PersonalMask(step=0.2, channels=0.3),
    "lottery": lambda: RewoundMask(accuracy=0.1),
    "flash": lambda: HuntedMask(epochs=2),
    "jmwst": lambda: HuntedMask(epochs=2, every=3),
    "candidates": lambda: DynamicMask(ByServer(), every=1, candidates=3),
    "threshold": lambda: ThresholdMask(0.1, every=1, until=3),
    "voted": lambda: VotedMask(schedule=Cubic()),
    "greedy": lambda: GreedyMask(every=1, fixed_seconds=1e-3),
}


def metrics(trainer: Trainer) -> pd.DataFrame:
    return pd.read_csv(Path(str(trainer.log_dir), "metrics.csv"))


@pytest.mark.parametrize("rule", RULES)
def test_rules_with_masks_fulfil_the_contract(rule: str) -> None:
    check_part_rule(RULES[rule], levels=SPARSE)


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_ends_with_the_same_bits(fit: Fit, tmp_path: Path, rule: str) -> None:
    """Run without a stop, on workers where clients choose, and in this process up to and after a checkpoint."""

    def module(**changes: Any) -> FederatedModule:
        return small_module(levels=SPARSE, parts=RULES[rule](), uplink=ErrorFeedback(TopK(0.2)), **changes)

    elsewhere = {"executor": Workers(2)} if rule in ("clients", "importance", "lottery") else {}
    fit = partial(fit, data=small_data(client_val_fraction=0.3), limit_val_batches=0)
    whole, first, second = module(**elsewhere), module(), module()
    one = fit(whole, rounds=4, name="whole")
    # The schedule of masks depends on the number of rounds, so the first half knows it, too.
    begun = fit(first, rounds=4, name="begun", callbacks=[StopAfter(2)])
    begun.save_checkpoint(tmp_path / "half.ckpt")
    two = fit(second, rounds=4, name="resumed", ckpt=str(tmp_path / "half.ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    rows = [Path(str(trainer.log_dir), "metrics.csv").read_text().splitlines() for trainer in (one, two)]
    assert rows[0][-2:] == rows[1][-2:]
    parts = [[module.parts.part("b", 4, client) for client in range(-1, 12)] for module in (whole, second)]
    assert parts[0] == parts[1]
    assert any(part.mask_D is not None for part in parts[0])


class StopAfter(Callback):
    """Ends training after some rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.rounds


def test_masks_keep_the_number_of_held_entries_in_every_weight(fit: Fit) -> None:
    for name in ("random", "server", "clients", "posterior"):
        module = small_module(levels=SPARSE, parts=RULES[name]())
        before = module.parts.of_level("b", 0)
        fit(module, rounds=3, name=name, limit_val_batches=0)
        after = module.parts.of_level("b", 3)
        assert after.held.shapes == before.held.shapes
        assert after != before
        assert before.size < 0.5 * before.layout.size


def test_clients_with_masks_of_their_own_are_measured_with_them(fit: Fit) -> None:
    """A client's own sub-model is measured on its test samples, beside the global model."""
    everyone: dict[str, Any] = {"selection": Uniform(12), "assignment": Dynamic({"b": 1})}
    module = small_module(levels=SPARSE, parts=DynamicMask(OwnMasks(), every=1), **everyone)
    data = small_data()
    trainer = fit(module, data, rounds=3)
    trainer.test(module, datamodule=data, verbose=False)
    columns = metrics(trainer).iloc[-1]
    clients = pd.read_csv(Path(str(trainer.log_dir), "clients.csv"))
    tested = clients[clients["test_samples"] > 0]
    assert columns["local/personal_accuracy"] == pytest.approx(tested["personal_accuracy"].mean())
    assert len({module.parts.part("b", 3, client).key for client in range(12)}) == 12


def test_a_personal_mask_shrinks_by_steps_to_its_target_and_waits_for_a_small_loss(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", density=0.5)}
    rule, strict = PersonalMask(step=0.2), PersonalMask(step=0.2, loss=1e-6)
    for each in (rule, strict):
        module = small_module(levels=levels, parts=each, assignment=Dynamic({"b": 1}), selection=Uniform(12))
        columns = metrics(fit(module, rounds=4, name=str(each.loss), limit_val_batches=0))["parts/density"]
        wanted = [0.8, 0.6, 0.5, 0.5] if each is rule else [1.0] * 4
        assert columns.tolist() == pytest.approx(wanted, abs=2e-3)


def test_gradients_are_charged_as_messages_in_the_rounds_that_need_them(fit: Fit) -> None:
    """In every second round the four clients send a gradient of all parameters."""
    module, plain = (
        small_module(levels=SPARSE, parts=RankedMask(criterion, every=2), assignment=Dynamic({"b": 1}))
        for criterion in (Gradient(), None)
    )
    asked, quiet = (
        metrics(fit(each, rounds=2, name=each.parts.describe(), limit_val_batches=0)) for each in (module, plain)
    )
    parameters = sum(each.numel() for each in module.parameters())
    message = len(encode(DenseUpdate(torch.zeros(parameters)), round=0, client=0))
    up_bytes = asked["comm/up_bytes"] - quiet["comm/up_bytes"]
    assert up_bytes.tolist() == [0.0, 4 * message]
    flops = asked["compute/flops_total"].diff()[1], quiet["compute/flops_total"].diff()[1]
    assert flops[0] > 1.5 * flops[1]


def test_only_the_largest_gradients_outside_of_the_mask_travel(fit: Fit) -> None:
    module = small_module(levels=SPARSE, parts=DynamicMask(ByServer(), every=2), assignment=Dynamic({"b": 1}))
    up_bytes = metrics(fit(module, rounds=4, limit_val_batches=0))["comm/up_bytes"]
    parameters = sum(each.numel() for each in module.parameters())
    assert up_bytes[0] < up_bytes[1] < up_bytes[0] + 4 * parameters  # fewer than a quarter of all entries each


def test_pruned_entries_are_zero_and_dense_and_sparse_levels_agree(fit: Fit) -> None:
    """With all clients at the sparse level, the global model is the pruned one."""
    parts = RankedMask(scope="global", schedule=Cubic(), shrink=True, erase=True)
    module = small_module(levels=SPARSE, parts=parts, assignment=Dynamic({"b": 1}))
    last = metrics(fit(module, rounds=4)).iloc[-1]
    assert last["val/accuracy_by_level/a"] == last["val/accuracy_by_level/b"]
    part = module.parts.of_level("b", 3)
    weights = parts.weights
    held = sum(int(weight.count_nonzero()) for weight in weights.values())
    assert part.mask_D is not None
    assert held <= round(0.3 * sum(weight.numel() for weight in weights.values()))
    assert all(not weight[~parts.held(0.3)[name]].any() for name, weight in weights.items())


@pytest.mark.parametrize("rule", ["server", "voted", "own", "importance"])
def test_rules_with_masks_train_several_global_models(fit: Fit, rule: str) -> None:
    module = small_module(levels=SPARSE, parts=RULES[rule](), clustering=IFCA(2, jitter=0.1), selection=Uniform(6))
    fit(module, rounds=3, limit_val_batches=0)
    assert isinstance(module.parts, MaskRule)
    pruned = [net.get_parameter(name)[~mask] for net in module.models for name, mask in module.parts.mask.items()]
    assert sum(each.numel() for each in pruned) > 0
    assert any(bool(each.any()) for each in pruned) == (rule in ("own", "importance"))


def test_masks_of_several_densities_are_nested() -> None:
    levels = {"a": Level("a"), "b": Level("b", density=0.5), "c": Level("c", 0.5, density=0.2)}
    module = small_module(levels=levels, parts=RankedMask())
    parts = [module.parts.of_level(level, 0) for level in "abc"]
    assert parts[0].covers(parts[1])
    assert parts[1].covers(parts[2])


def test_parts_that_depend_on_the_weights_cannot_be_replayed(fit: Fit) -> None:
    module = small_module(levels=SPARSE, parts=RankedMask())
    fit(module, rounds=1, limit_val_batches=0)
    with pytest.raises(ConfigurationError, match="part rule that can be replayed.*got RankedMask"):
        holders(module, 1)


@pytest.mark.parametrize(
    ("rule", "levels", "message"),
    [
        (RankedMask, {"a": Level("a")}, "a level with a density below 1 for RankedMask"),
        (lambda: ThresholdMask(0.1), {**SPARSE, "c": Level("c", density=0.1)}, "one density below 1 for ThresholdMask"),
        (DynamicMask, {**SPARSE, "c": Level("c", density=0.1)}, r"one density below 1 for DynamicMask.*\[0.3, 0.1\]"),
        (GreedyMask, {**SPARSE, "c": Level("c", density=0.1)}, r"one density below 1 for GreedyMask.*\[0.3, 0.1\]"),
        (DynamicMask, {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}, "whole width and depth at level b"),
        (HuntedMask, {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}, "whole width and depth at level b"),
        (
            lambda: RankedMask(complement=True),
            {**SPARSE, "c": Level("c", density=0.1)},
            r"one density below 1 with complement but got \[0.3, 0.1\]",
        ),
        (lambda: DynamicMask(scope="layer"), EMPTY, r"leaves none of the .* \(level b\)"),
        (lambda: RankedMask(schedule=Cubic()), EMPTY, r"leaves none of the .* \(level b\)"),
        (VotedMask, EMPTY, r"which leaves 0 entries for 3 layers \(level b\)"),
        (PersonalMask, EMPTY, r"leaves none of the .* \(level b\)"),
        (RewoundMask, EMPTY, r"leaves none of the .* \(level b\)"),
    ],
)
def test_levels_that_do_not_fit_the_rule_are_refused(
    fit: Fit, rule: Callable[[], PartRule], levels: dict[str, Level], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(small_module(levels=levels, parts=rule()), rounds=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RankedMask(every=-1), "every of at least 0 rounds but got -1"),
        (lambda: ThresholdMask(-0.1), "finite threshold above 0, .* but got -0.1, 1, 0, None"),
        (lambda: ThresholdMask(0.1, after=3, every=1, until=3), "until above after but got 0.1, 3, 1, 3"),
        (lambda: ThresholdMask(0.1, until=3), "every above 0 with until, for a threshold that rises, but got 0"),
        (lambda: RankedMask(complement=True, shrink=True), "shrink: false with complement"),
        (lambda: RankedMask(NormScale()), "a criterion for every entry but got NormScale"),
        (lambda: DynamicMask(first=NormScale()), "a first criterion of initial weights.* but got NormScale"),
        (lambda: DynamicMask(first=SquaredTaylor()), "a first criterion of initial weights.* but got SquaredTaylor"),
        (lambda: DynamicMask(share=1.0), r"share in \(0, 1\).* but got 1.0, 10, None"),
        (lambda: GreedyMask(fixed_seconds=0), "fixed_seconds and half_life above 0"),
        (lambda: ClientImportance(Movement()), r"criterion of present weights.* but got Movement\(since=start\)"),
        (lambda: Posterior(trust=2), r"trust in \[0, 1\] and rate above 0 but got 2, 10.0"),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
