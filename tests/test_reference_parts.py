"""Part rules other than leading blocks, against the reference federation in NumPy (tests/reference)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hetfl import FedAvg, HeteroFL, Level
from hetfl.aggregators import SampleMean
from hetfl.compression import ErrorFeedback, TopK
from hetfl.fleet import Dynamic
from hetfl.local import FedDyn, LocalTraining
from hetfl.models import ConvNet
from hetfl.part import Part
from hetfl.parts import PartRule, RandomChannels, RandomMask, Rolling, ScoredChannels
from hetfl.seeding import generator
from hetfl.selection import Uniform
from hetfl.store import MemoryStore
from hetfl.wire import encode_part
from tests.reference.cases import Fit, compare, conv_shapes, sgd
from tests.reference.channels import BestChannels
from tests.reference.federation import Federation
from tests.reference.given import given, made_data, made_fleet
from tests.reference.nets import conv_net
from tests.reference.rules import Rules
from tests.reference.run import check_store

pytestmark = pytest.mark.usefixtures("double_precision")


class SparseChannels(PartRule):
    """Random channels for every client and round, and a random share of their weights."""

    masks = True

    def part(self, level: str, round: int, client: int) -> Part:
        random = generator(self.seed, "sparse", round, client)
        part = self.of_channels(level, lambda of, held: torch.randperm(of, generator=random)[:held].sort().values)
        held = torch.rand(part.layout.size, generator=random) < self.levels[level].density
        return Part(part, held if self.levels[level].density < 1 else None)


@pytest.mark.parametrize("rule", [Rolling, RandomChannels, RandomMask, SparseChannels])
def test_heterofl_with_other_part_rules_equals_the_reference(fit: Fit, tmp_path: Path, rule: type[PartRule]) -> None:
    """Rounds with top-k, momentum, clipping, weight decay, FedDyn's memories and Adam on the server."""
    sparse = rule.masks
    # With seed 0 a client of RandomMask holds no weight of a filter in round 3. The filter's outputs are then constant,
    # and batch norm turns them into rounding errors, which change the results of ReLU and pooling.
    seed = 1 if rule is RandomMask else 0
    rules = Rules(
        nets={"a": conv_net(1.0, 2), "b": conv_net(0.5, 2)},
        shapes={"a": conv_shapes(4, 6, classes=5), "b": conv_shapes(2, 3, classes=5)},
        masked=True,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.01,
        clip=0.5,
        feddyn=0.2,
        density=0.3,
        server_lr=0.01,
        adam=True,
    )
    data = made_data([13, 9, 17, 8, 21, 10], (1, 6, 6), 5, labels=lambda k: [k % 5, (k + 1) % 5, (2 * k) % 5])
    memories, residuals = MemoryStore(), MemoryStore()
    settings = sgd(0.1, momentum=0.9, weight_decay=0.01)
    local = LocalTraining(batch_size=4, gradient_clip=0.5, optimizer=settings, penalty=FedDyn(0.2, memories))
    pieces: Any = {"selection": Uniform(4), "assignment": Dynamic(), "local": local}
    fleet, net, parts = made_fleet(tmp_path, 6), partial(ConvNet, num_classes=5, hidden=(4, 6)), rule()
    module = HeteroFL(
        net,
        {"a": Level("a"), "b": Level("b", 0.5, density=0.4 if sparse else 1.0)},
        uplink=ErrorFeedback(TopK(0.3), residuals),
        server_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        fleet=fleet,
        parts=parts,
        seed=seed,
        **pieces,
    )
    federation = Federation(rules, given(net, data, rules, fleet, parts=parts, seed=seed, **pieces))
    compare(fit, module, data, federation, rounds=20 if rule is SparseChannels else 5)
    check_store(residuals, federation.residuals)
    check_store(memories, federation.memories)
    held = [parts.part("b", round, client) for round in (3, 4) for client in (0, 1)]
    assert len({part.key for part in held}) == (2 if rule is Rolling else 4)


def test_the_best_channels_and_a_mean_over_the_cohort_equal_the_reference(fit: Fit, tmp_path: Path) -> None:
    """FedMP's part rule and mean, with top-k and its residuals, momentum, and a ranking that is kept for two rounds."""
    rules = Rules(
        nets={"a": conv_net(1.0, 2), "b": conv_net(0.5, 2)},
        shapes={"a": conv_shapes(6, 8, classes=5), "b": conv_shapes(3, 4, classes=5)},
        lr=0.2,
        momentum=0.9,
        density=0.3,
        of_cohort=True,
        samples=True,
    )
    data = made_data([13, 9, 17, 8, 21, 10], (1, 6, 6), 5)
    pieces: Any = {
        "selection": Uniform(4),
        "assignment": Dynamic(),
        "local": LocalTraining(batch_size=4, optimizer=sgd(0.2, momentum=0.9)),
    }
    fleet, net, residuals = made_fleet(tmp_path, 6), partial(ConvNet, num_classes=5, hidden=(6, 8)), MemoryStore()
    module = FedAvg(
        net,
        {"a": Level("a"), "b": Level("b", 0.5)},
        uplink=ErrorFeedback(TopK(0.3), residuals),
        aggregator=SampleMean("cohort"),
        fleet=fleet,
        parts=ScoredChannels(refresh_every=2),
        **pieces,
    )
    federation = Federation(rules, given(net, data, rules, fleet, **pieces))
    best, blocks = BestChannels(federation, refresh_every=2), module.levels.indices

    def part_bytes(level: str, round: int, client: int) -> int:
        def as_slice(held: NDArray[np.int64]) -> slice | torch.Tensor:
            rises = held[-1] - held[0] == len(held) - 1
            return slice(int(held[0]), int(held[-1]) + 1) if rises else torch.from_numpy(held)

        where, _ = best.part(level, round, client)
        part = Part({name: tuple(map(as_slice, entry)) for name, entry in where.items()})
        return len(encode_part(part, blocks[level], blocks["a"]))

    federation.given = replace(federation.given, part=best.part, part_bytes=part_bytes)
    compare(fit, module, data, federation, rounds=6)
    check_store(residuals, federation.residuals)
    assert len({repr([sorted(order[: len(order) // 2]) for order in each]) for each in best.ranked.values()}) > 1
