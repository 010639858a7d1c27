"""The executor of a module that names none: worker processes, groups by shape, and the same groups after a resume."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.optim import Adam

from hetfl.compare.processes import shared
from hetfl.errors import ConfigurationError
from hetfl.local import Auto, DefaultExecutor, LocalTraining, Sequential, Workers
from hetfl.local import default as default_module
from hetfl.local.by_shape import ByShape
from hetfl.local.jobs import statistics, train
from hetfl.models import ConvNet
from hetfl.types import Task
from tests.conftest import small_levels, small_module
from tests.local_cases import Problem, bench_of, results, sgd, tasks_of

Fit = Callable[..., Trainer]
WIDE = partial(ConvNet, hidden=(64, 128, 256, 512))


def sizes(problem: Problem, tasks: Sequence[Task], processes: int = 2, job: Any = train) -> dict[str, list[int]]:
    """Return by level the sizes of the groups of a cohort of equal clients."""
    inner = ByShape(processes)
    inner.open(bench_of(problem, (20,) * 10))
    groups = inner.groups(job, tasks)
    assert sorted(i for group in groups for i in group) == list(range(len(tasks)))
    by_level: dict[str, list[int]] = {}
    for group in groups:
        by_level.setdefault(tasks[group[0]].level, []).append(len(group))
    return by_level


@pytest.mark.usefixtures("double_precision")
def test_results_are_those_of_one_after_the_other() -> None:
    problem, tasks = Problem(LocalTraining(optimizer=sgd())), tasks_of(range(6))
    executor = DefaultExecutor()
    executor.processes = 2
    try:
        actual = results(executor, bench_of(problem, (20,) * 6), tasks)
        assert isinstance(executor._executor, Workers)
    finally:
        executor.close()
    for (vector, *_), (plain, *_) in zip(
        actual, results(Sequential(), bench_of(problem, (20,) * 6), tasks), strict=True
    ):
        assert torch.allclose(vector, plain, rtol=0, atol=1e-12)


def test_small_nets_are_grouped_as_far_as_all_processes_have_work() -> None:
    problem = Problem(LocalTraining(optimizer=sgd()), dtype=torch.float32)
    assert sizes(problem, tasks_of(range(10), "b")) == {"b": [5, 5]}
    assert sizes(problem, tasks_of(range(10), "b"), processes=5) == {"b": [2] * 5}
    assert sizes(problem, tasks_of(range(10), "b"), processes=10) == {"b": [1] * 10}
    assert sizes(problem, tasks_of(range(10), "b"), job=statistics) == {"b": [1] * 10}


@pytest.mark.parametrize(
    ("width", "batch_size", "grouped"), [(0.9, 10, False), (0.5, 10, True), (0.5, 32, False), (0.125, 100, True)]
)
def test_wide_nets_and_large_batches_are_trained_one_by_one(width: float, batch_size: int, grouped: bool) -> None:
    """As measured: at half the width a group takes 0.8 of the time with 10 samples, and 1.05 of it with 32."""
    local = LocalTraining(batch_size=batch_size, optimizer=sgd())
    problem = Problem(local, WIDE, small_levels(1.0, width), dtype=torch.float32)
    assert (max(sizes(problem, tasks_of(range(4), "b"))["b"]) > 1) == grouped


def test_what_cannot_be_grouped_is_trained_one_by_one() -> None:
    local = LocalTraining(optimizer=partial(Adam, lr=1.0))
    assert sizes(Problem(local, dtype=torch.float32), tasks_of(range(4), "b")) == {"b": [1] * 4}


def test_a_resumed_run_has_the_groups_of_its_beginning(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """The bits depend on the groups, and so on the number of cores at the start."""
    cores = 3

    def module() -> Any:
        return small_module(executor=DefaultExecutor())

    monkeypatch.setattr(default_module, "usable_cores", lambda: cores)
    whole = module()
    fit(whole, rounds=2, name="whole")
    first = module()
    trainer = fit(first, rounds=1, name="first")
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    cores = 1
    second = module()
    fit(second, rounds=2, name="second", ckpt=str(tmp_path / "half.ckpt"))
    assert second.executor.processes == 3
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, second.net.state_dict()[name]), name


def test_the_state_of_another_executor_is_no_choice() -> None:
    """A run may be resumed with another executor; the groups are then those of its own cores."""
    automatic, default = Auto(num_workers=2), DefaultExecutor()
    automatic.chosen = {"device": "cpu", "processes": False, "clients": {"a": 2}}
    own = default.processes
    default.load_state_dict(automatic.state_dict())
    assert default.processes == own
    automatic.load_state_dict(default.state_dict())
    assert automatic.chosen == {}
    automatic.load_state_dict({"device": "cpu", "processes": True, "clients": {"a": 2}})
    assert automatic.chosen["clients"] == {"a": 2}


def test_processes_that_see_an_accelerator_are_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    executor = DefaultExecutor()
    assert executor.words == (
        "one client after the other, because of a visible accelerator (cuda; CUDA_VISIBLE_DEVICES= hides NVIDIA cards)"
    )
    executor.open(bench_of(Problem(LocalTraining(optimizer=sgd()))))
    assert executor.room == 0
    assert not any(form.processes for form in Auto(num_workers=2)._forms(4, alone=True))
    with pytest.raises(ConfigurationError, match="forked processes that can train for executor Workers but got a vis"):
        results(Workers(1), bench_of(Problem(LocalTraining(optimizer=sgd()))), tasks_of(range(2)))


ACCELERATED = """
import torch
from lightning.pytorch import Trainer
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
_setup_privateuseone_for_python_backend("visible")
from tests.conftest import small_data, small_module
module = small_module(executor=None)
Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False).fit(module, small_data())
print(module.models.version, module.executor.words.split(",")[0])
"""


@pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="torch has no accelerators that are written in Python")
def test_a_run_on_the_cpu_of_a_machine_with_an_accelerator_ends() -> None:
    """Torch refuses backward passes in forks of a process that sees an accelerator and has done one."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", ACCELERATED], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["1 one client after the other"], done.stderr


class Raising(nn.Module):
    """A net that fails at its second level only."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        self.width, self.linear = width, nn.Linear(64, 10, bias=width == 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        if self.width < 1.0 and self.training:
            raise KeyError("of the user")
        y: Tensor = self.linear(x.flatten(1))
        return y


def test_an_error_of_a_client_has_the_frames_of_the_users_code() -> None:
    executor = DefaultExecutor()
    problem = Problem(LocalTraining(optimizer=sgd()), Raising, dtype=torch.float32)
    with pytest.raises(KeyError, match="of the user") as caught:
        results(executor, bench_of(problem), tasks_of(range(3), "b"))
    executor.close()
    assert "forward" in [entry.name for entry in caught.traceback]


@pytest.mark.parametrize(("cores", "runs", "share"), [(8, 1, 8), (8, 3, 2), (2, 2, 1), (2, 5, 1)])
def test_runs_at_a_time_share_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, runs: int, share: int) -> None:
    """Groups of clients do not depend on it, so that runs have the same bits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in shared(runs).items():
        monkeypatch.setenv(name, value)
    assert Workers().num_workers == share
    assert DefaultExecutor().processes == cores
