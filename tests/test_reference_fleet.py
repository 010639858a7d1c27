"""Whole runs on fleets with late or absent clients, against the reference federation in NumPy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hetfl import FedAvg
from hetfl.fleet import Dynamic
from hetfl.local import LocalTraining, Proximal
from hetfl.models import ConvNet
from hetfl.selection import Uniform
from tests.reference.cases import Fit, compare, conv_shapes, one_level, sgd
from tests.reference.evaluation import Evaluation
from tests.reference.federation import Federation
from tests.reference.given import given, made_data, made_fleet
from tests.reference.nets import conv_net
from tests.reference.rules import Rules
from tests.reference.run import check_rows, check_values, play
from tests.reference.torch_nets import Mlp

pytestmark = pytest.mark.usefixtures("double_precision")

PATIENT = 3
"""The client whose training takes exactly as long as the deadline allows, to the last bit."""


@pytest.mark.filterwarnings("ignore:No update of a round arrived")
def test_fedprox_with_stragglers_deadline_and_absent_clients_equals_the_reference(fit: Fit, tmp_path: Path) -> None:
    """Rates are powers of two, so seconds are exact; four of ten clients are present in the first round only."""
    data = made_data([11, 16, 23, 13, 18, 14, 12, 12, 12, 12])
    data.setup()
    # A net of 47 parameters and 8 buffers takes 152 FLOPs per sample; downloads and uploads are float64.
    deadline = (56 + 8 * 55) / 64 + 152 * data.sizes[PATIENT] * 2 / 256 + (56 + 8 * 55) / 64
    rules = one_level(norm=True, samples=True, proximal=0.4, deadline=deadline, batch=5, weight_decay=0.01)
    local = LocalTraining(
        epochs=2, batch_size=5, optimizer=sgd(0.1, weight_decay=0.01), penalty=Proximal(0.4), stragglers=0.4
    )
    parts: Any = {"selection": Uniform(4), "assignment": Dynamic(), "local": local}
    fleet = made_fleet(
        tmp_path,
        10,
        period=120.0,
        throughput=[256.0] * 10,
        downlink=[64.0] * 10,
        uplink=[64.0] * 10,
        availability=[0.3] * 10,
        last_round=[99] * 6 + [0] * 4,
    )
    net = partial(Mlp, norm=True)
    module = FedAvg(net, fleet=fleet, deadline=deadline, seed=3, **parts)
    federation = Federation(rules, given(net, data, rules, fleet, **parts, seed=3))
    rows, _, _ = compare(fit, module, data, federation, rounds=7)
    assert [row["waited"] > 0 for row in rows] == [False, True, False, False, False, True, False]
    assert {row["dropped"] for row in rows} == {1}
    assert federation.taken[6, PATIENT] == 2, "no client takes exactly the deadline"
    assert 1 in federation.taken.values(), "no straggler is in time"


def test_a_resumed_run_continues_the_clock_of_the_checkpoint(fit: Fit, tmp_path: Path) -> None:
    """A run of two rounds without evaluations is resumed; the resumed run starts with a sanity check by clients."""
    data = made_data([11, 16, 23, 13, 18, 14], (1, 4, 4))
    rules = Rules(nets={"a": conv_net(1.0, 1)}, shapes={"a": conv_shapes(3, classes=3)}, samples=True, batch=5)
    local = LocalTraining(epochs=1, batch_size=5, optimizer=sgd(0.1))
    parts: Any = {"selection": Uniform(2), "assignment": Dynamic(), "local": local}
    fleet = made_fleet(tmp_path, 6, period=3.0, availability=[0.5, 0.6, 0.7, 0.5, 0.6, 0.7])
    net = partial(ConvNet, num_classes=3, hidden=(3,))
    federation = Federation(rules, given(net, data, rules, fleet, **parts))
    before, _ = play(federation, rounds=2, evaluated=False)
    Evaluation(federation).validation(1)  # a sanity check writes no row, and advances the clock
    after, _ = play(federation, rounds=4, first=2)

    def run(rounds: int, **options: Any) -> tuple[FedAvg, Any]:
        module = FedAvg(net, fleet=fleet, **parts)
        return module, fit(module, data, rounds=rounds, precision="64-true", **options)

    _, trainer = run(2, limit_val_batches=0)
    check_rows(trainer.log_dir, before)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    module, trainer = run(4, ckpt=str(tmp_path / "two.ckpt"), num_sanity_val_steps=-1)
    check_rows(trainer.log_dir, after)
    check_values(module.submodel("a"), federation.models[0])
