"""Complement sparsification and pruning by a threshold against NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from hetfl import Level
from hetfl.analysis import load_run
from hetfl.levels.level_set import LevelSet
from hetfl.local import Sequential, Stacked
from hetfl.parts import RankedMask, ThresholdMask
from hetfl.piece import Facts
from hetfl.pruning import Cubic
from tests.conftest import small_module, small_net
from tests.mask_cases import DENSITY, all_together, check, sizes
from tests.reference.cases import Fit
from tests.sparse_cases import WEIGHTS, Clients, Tensors, masked, top

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.mark.parametrize("dense_rounds", [0, 1])
def test_complement_sparsification_equals_numpy(fit: Fit, dense_rounds: int) -> None:
    """Clients train all entries from the masked model, and send those outside of the mask; in a dense round, all."""

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        theta, everything = masked(theta, mask), {name: np.ones_like(mask[name]) for name in WEIGHTS}
        for round in range(6):
            mean = clients.mean(clients.results(theta, [everything] * 4))
            kept = mask if round >= dense_rounds else {}
            theta = {name: np.where(kept.get(name, 0.0), value, mean[name]) for name, value in theta.items()}
            mask = all_together(sizes(theta), DENSITY)
            theta = masked(theta, mask)
        return theta, mask

    schedule = Cubic(begin=0, until=1) if dense_rounds else None
    _, first, last = check(fit, RankedMask(scope="global", schedule=schedule, complement=True), 6, play, lr=2.0)
    assert any((first[name] != last[name]).any() for name in WEIGHTS)
    assert all(first[name].all() for name in WEIGHTS) == bool(dense_rounds)


def test_a_client_sends_the_complement_of_its_mask() -> None:
    """Of (4, 1, 0, -3) the server keeps and sends 4 and -3; the client sends the two other entries, and the bias."""
    net = nn.Linear(4, 1)
    net.weight.data.copy_(torch.tensor([[4.0, 1.0, 0.0, -3.0]]))
    rule = RankedMask(complement=True)
    rule.meet(LevelSet(lambda width=1.0: net, {"a": Level("a"), "b": Level("b", density=0.5)}, 0), seed=0)
    rule.setup(Facts())
    rule.begin()
    assert rule.weights["weight"].tolist() == [[4.0, 0.0, 0.0, -3.0]]
    part = rule.part("b", 0, 0)
    assert part.mask_D is not None
    assert part.mask_D.tolist() == [True, False, False, True, True]
    sent = rule.sent(part, "b", 0, 0)
    after = torch.tensor([4.1, 1.1, 3.2, -3.1, 0.5])
    assert sent.packed(after).tolist() == pytest.approx([1.1, 3.2, 0.5])
    whole = rule.part("a", 0, 0)
    assert rule.sent(whole, "a", 0, 0) == whole


@pytest.mark.parametrize(
    ("rule", "threshold_after"),
    [
        (ThresholdMask(0.2, after=2), {2: 0.2}),
        (ThresholdMask(0.4, after=1, every=2, until=4), {1: 0.1, 3: 0.3, 5: 0.4}),
        (ThresholdMask(9.0, after=3), {3: 9.0}),
    ],
    ids=["once", "rising", "all but one"],
)
def test_pruning_by_a_threshold_equals_numpy(fit: Fit, rule: ThresholdMask, threshold_after: dict[int, float]) -> None:
    densities: list[float] = []

    def play(theta: Tensors, mask: Tensors, clients: Clients) -> tuple[Tensors, Tensors]:
        assert all(mask[name].all() for name in WEIGHTS)
        for round in range(6):
            theta = clients.round(theta, [mask] * 4)
            for name in WEIGHTS if round + 1 in threshold_after else ():
                size = np.where(mask[name] > 0, abs(theta[name]), -1.0)
                kept = size >= threshold_after[round + 1]
                mask[name] = kept.astype(np.float64) if kept.any() else top(size, 1)
            theta = masked(theta, mask)
            densities.append(sum(mask[n].sum() for n in WEIGHTS) / sum(mask[n].size for n in WEIGHTS))
        return theta, mask

    trainer, _, mask = check(fit, rule, 6, play)
    reported = load_run(str(trainer.log_dir)).series("parts/density").tolist()
    assert reported == pytest.approx(densities, rel=1e-9)
    assert 1.0 > densities[-1] >= 2 / 45
    assert all(mask[name].any() for name in WEIGHTS)


def test_clients_train_all_entries_in_every_executor(fit: Fit) -> None:
    levels = {"a": Level("a"), "b": Level("b", 0.5, density=0.3)}
    net = partial(small_net, norm="none")  # a channel of zeros has no variance, by which batch norm divides
    trained = []
    for executor in (Sequential(), Stacked(3)):
        module = small_module(net=net, levels=levels, parts=RankedMask(complement=True), executor=executor)
        fit(module, rounds=3, precision="64-true", limit_val_batches=0, name=type(executor).__name__)
        trained.append([parameter.detach() for parameter in module.parameters()])
    assert all(torch.allclose(one, two, rtol=0, atol=1e-10) for one, two in zip(*trained, strict=True))
