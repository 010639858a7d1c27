"""Evaluations in worker processes: the scores are those of one process, for any number of workers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hetfl import DepthFL, FedAvg
from hetfl.clustering import IFCA
from hetfl.fleet import Dynamic
from hetfl.local import Executor, Sequential, Workers
from hetfl.local.bench import Bench
from hetfl.local.own_scores import OwnScores
from hetfl.models import MultiExitConvNet
from hetfl.objectives import Classification
from hetfl.parts import RankedMask, Rolling
from hetfl.tree import length
from hetfl.types import Level, Task
from tests.conftest import small_data, small_levels, small_module, small_net
from tests.lora_cases import lora_module

Fit = Callable[..., Trainer]

FEDERATIONS: dict[str, Callable[..., Any]] = {
    "static norm": small_module,
    "heads": lambda **changes: small_module(
        DepthFL,
        net=lambda depth=2, width=1.0: MultiExitConvNet(hidden=(4, 8), depth=depth, width=width),
        levels={"a": Level("a", depth=2), "b": Level("b", depth=1)},
        **changes,
    ),
    "rolling windows": lambda **changes: small_module(parts=Rolling(), **changes),
    "masks": lambda **changes: small_module(
        FedAvg,
        levels={"a": Level("a"), "b": Level("b", density=0.3)},
        assignment=Dynamic({"b": 1}),
        parts=RankedMask(),
        **changes,
    ),
    "clusters": lambda **changes: small_module(clustering=IFCA(2), **changes),
    "adapters": lora_module,
    "personal": lambda **changes: small_module(personal=["classifier.*", "*norm*"], clustering=IFCA(2), **changes),
}


def scores(fit: Fit, federation: Callable[..., Any], executor: Executor, name: str) -> pd.DataFrame:
    """Return the scores of two rounds and of a test, by column."""
    module, data = federation(executor=executor), small_data()
    trainer = fit(module, data, rounds=2, name=name, precision="64-true")
    tested = trainer.test(module, data, verbose=False)[0]
    rows = pd.read_csv(f"{trainer.log_dir}/metrics.csv").filter(regex="^(val|local)/")
    return pd.concat([rows, pd.DataFrame([tested])])


@pytest.mark.parametrize("kind", FEDERATIONS)
def test_workers_measure_the_scores_of_one_process(fit: Fit, kind: str) -> None:
    here = scores(fit, FEDERATIONS[kind], Sequential(), "here")
    two = scores(fit, FEDERATIONS[kind], Workers(2), "two")
    assert {"val/loss", "test/loss"} <= set(here)
    assert ("local/personal_accuracy" in here) == (kind == "personal")
    pd.testing.assert_frame_equal(here, two, check_exact=False, rtol=1e-9)


def test_workers_measure_clients_own_models(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process does not evaluate a client's own model, and all clients with test samples are asked."""
    asked, run, call = [], Workers.run, OwnScores.__call__

    def noted(self: Workers, job: Any, tasks: Sequence[Task], recall: Any = None) -> Any:
        if isinstance(job, OwnScores):
            asked.append([task.client for task in tasks])
        return run(self, job, tasks, recall)

    def counted(self: OwnScores, bench: Bench, task: Task) -> Any:
        processes.add(os.getpid())
        return call(self, bench, task)

    processes: set[int] = set()
    monkeypatch.setattr(Workers, "run", noted)
    monkeypatch.setattr(OwnScores, "__call__", counted)
    data = small_data()
    fit(small_module(personal=["classifier.*"], executor=Workers(2)), data=data, rounds=1)
    tested = [client for client in range(data.num_clients) if len(data.client_data(client, "test"))]
    assert asked == [tested]
    assert not processes


class Many(Classification):
    """An objective with more numbers per sample than the model has entries. One is beyond float32, one is infinite."""

    def sums(self, outputs: Tensor, targets: Tensor) -> Tensor:
        hits_N2 = super().sums(outputs, targets)
        further = hits_N2.new_tensor([1e300, math.inf, *[0.1] * 4000])
        return torch.cat([hits_N2, further.expand(len(targets), -1)], dim=1)

    def score(self, sums: Tensor) -> Tensor:
        assert sums.shape[-1] == 4004
        assert torch.allclose(sums[..., 2], sums[..., 1] * 1e300)
        assert torch.equal(sums[..., 3] == math.inf, sums[..., 1] > 0)
        return super().score(sums[..., :2])


@pytest.mark.parametrize("executor", [Sequential(), Workers(2)])
def test_scores_may_have_many_numbers_of_any_size(fit: Fit, executor: Executor) -> None:
    module = small_module(personal=["classifier.*"], executor=executor, objective=Many())
    trainer = fit(module, small_data(local_metrics=False), rounds=1)
    assert 0 <= trainer.callback_metrics["local/personal_accuracy"] <= 1


def test_scores_have_the_same_bits_for_any_number_of_workers(fit: Fit) -> None:
    one, three = (scores(fit, small_module, Workers(count), f"{count}") for count in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)


class Narrow(Workers):
    """Workers whose results, once they run, have room for nine numbers: fewer than the outputs of a row."""

    @property
    def room(self) -> int:
        return 9 if self._workers else super().room


@pytest.mark.parametrize(("kind", "asked"), [(Workers, True), (Narrow, False)])
def test_a_row_that_a_result_has_no_room_for_is_left_to_this_process(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, kind: type[Workers], asked: bool
) -> None:
    pieces, run = [], Workers.run

    def noted(self: Workers, job: Any, tasks: Sequence[Task], recall: Any = None) -> Any:
        pieces.append([length(task.inputs) for task in tasks if task.inputs is not None])
        return run(self, job, tasks, recall)

    monkeypatch.setattr(Workers, "run", noted)
    data = small_data(eval_batch_size=70)
    fit(small_module(levels=small_levels(1.0), executor=kind(1)), data=data, rounds=1)
    assert ([24, 23, 23] in pieces) == asked
    assert any(pieces) == asked


class Broken(nn.Module):
    """A net without static norm layers that cannot be evaluated on many rows."""

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__()
        self.net = small_net(width=width, norm="none")

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and len(inputs) > 12:
            raise ValueError("a net that fails")
        outputs: Tensor = self.net(inputs)
        return outputs


def test_an_error_in_a_worker_says_what_it_did(fit: Fit) -> None:
    with pytest.raises(ValueError, match="a net that fails") as caught:
        fit(small_module(net=Broken, executor=Workers(2)), rounds=1)
    (note,) = caught.value.__notes__
    assert note.startswith("in the work of an evaluation of ")
