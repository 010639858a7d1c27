"""The Auto executor: timing of forms, the choice, and the same choice after a resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.optim import Adam

from hetfl.errors import ConfigurationError
from hetfl.local import Auto, LocalTraining, Sequential
from hetfl.local.auto import auto, probe
from hetfl.local.auto.by_level import ByLevel
from hetfl.local.auto.probe import STEPS, Form, time_forms
from hetfl.local.bench import Bench
from hetfl.local.jobs import statistics, train
from hetfl.parts import TrainedRanks
from hetfl.selection import Uniform
from hetfl.types import Task
from tests.conftest import small_module
from tests.local_cases import Problem, bench_of, results, sgd, tasks_of
from tests.lora_cases import lora_module

pytestmark = pytest.mark.usefixtures("double_precision")

Fit = Callable[..., Trainer]
LOGGER = "hetfl.local.auto"
TIMES = dict[tuple[str, bool, int], float]
"""Seconds per sample by level, place and number of clients trained together; 1 if missing."""


def stub(times: TIMES, timed_forms: list[tuple[str, int]]) -> Callable[..., tuple[dict[Form, float], str]]:
    """Return a timing function that reads a table, so that tests do not depend on the machine's speed."""

    def timed(
        bench: Bench, tasks: Sequence[Task], forms: Sequence[Form], num_workers: int
    ) -> tuple[dict[Form, float], str]:
        level = tasks[0].level
        timed_forms.append((level, len(tasks)))
        return {form: times.get((level, form.processes, form.clients), 1.0) for form in forms}, ""

    return timed


def choice(monkeypatch: pytest.MonkeyPatch, times: TIMES, tasks: Sequence[Task], **options: Any) -> Any:
    """Return the chosen forms and the timed ones, after comparing the results with those of Sequential."""
    timed_forms: list[tuple[str, int]] = []
    monkeypatch.setattr(auto, "time_forms", stub(times, timed_forms))
    executor, problem = Auto(**options), Problem(LocalTraining(optimizer=sgd()))
    try:
        actual = results(executor, bench_of(problem, (12,) * 6), tasks)
        again = [result.vector for result in executor.run(train, tasks)]
    finally:
        executor.close()
    expected = results(Sequential(), bench_of(problem, (12,) * 6), tasks)
    for (vector, *_), repeated, (plain, *_) in zip(actual, again, expected, strict=True):
        assert torch.equal(vector, repeated)
        assert torch.allclose(vector, plain, rtol=0, atol=1e-12)
    return executor.chosen, timed_forms


def test_every_level_gets_its_fastest_form_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {("a", False, 0): 0.6, ("b", False, 4): 0.2, ("a", True, 1): 0.5, ("b", True, 1): 0.9}
    chosen, timed_forms = choice(monkeypatch, times, tasks_of(range(4)), num_workers=2)
    assert chosen == {"device": "cpu", "processes": False, "clients": {"a": 0, "b": 4}}
    assert timed_forms == [("a", 4), ("b", 4)]


def test_the_place_depends_on_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 · 0.6 + 0.2 here is less than 5 · 0.5 + 0.9 in processes; with 15 clients at level a it is more."""
    times = {("a", False, 0): 0.6, ("b", False, 1): 0.2, ("a", True, 1): 0.5, ("b", True, 1): 0.9}
    few, one = tasks_of(range(5), "a"), tasks_of([5], "b")
    assert choice(monkeypatch, times, few + one, num_workers=2)[0]["processes"] is False
    chosen, _ = choice(monkeypatch, times, 3 * few + one, num_workers=2)
    assert chosen == {"device": "cpu", "processes": True, "clients": {"a": 1, "b": 1}}


def test_a_small_level_uses_one_process_while_the_other_trains_a_larger_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """12 · (1 + 0.6) with one client of b in each process; 12 · (1 + 0.4) or 12 · (1 + 0.8) with both in one."""
    for together, expected in ((0.1, 2), (0.2, 1)):
        times = {("a", True, 1): 0.5, ("b", True, 1): 0.3, ("b", True, 2): together}
        chosen, _ = choice(monkeypatch, times, tasks_of([0, 1]), num_workers=2)
        assert chosen == {"device": "cpu", "processes": True, "clients": {"a": 1, "b": expected}}


def test_one_process_may_train_the_share_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {("a", True, 2): 0.5, ("b", True, 4): 0.01}
    chosen, _ = choice(monkeypatch, times, tasks_of(range(4)), num_workers=2)
    assert chosen == {"device": "cpu", "processes": True, "clients": {"a": 2, "b": 4}}


def test_the_chosen_form_depends_on_the_work_of_clients() -> None:
    """Level b's clients train on 40 samples each and level a's on 4: both clients of b are too slow for one process."""
    executor = Auto(num_workers=2)
    executor.open(bench_of(Problem(LocalTraining(optimizer=sgd())), (4, 40, 40)))
    tasks = [*tasks_of([0], "a"), *tasks_of([1, 2], "b")]
    times = {("a", True, 1): 0.5, ("b", True, 1): 0.3, ("b", True, 2): 0.2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto, "time_forms", stub(times, []))
        executor._choose(tasks)
        assert executor.chosen["clients"] == {"a": 1, "b": 1}
        executor._choose([replace(task, epochs=10) if task.level == "a" else task for task in tasks])
        assert executor.chosen["clients"] == {"a": 1, "b": 2}


def test_a_level_without_clients_is_also_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, timed_forms = choice(monkeypatch, {("a", False, 2): 0.1}, tasks_of(range(5), "b"), clients=2, num_workers=1)
    assert timed_forms == [("a", 2), ("b", 5)]
    assert chosen == {"device": "cpu", "processes": False, "clients": {"a": 2, "b": 0}}


def test_a_level_without_clients_is_timed_without_the_entries_of_another_level(fit: Fit) -> None:
    """The only client sends some of its entries alone, which the other levels do not have."""
    parts = TrainedRanks({"a": 2, "b": 1})
    fit(lora_module(parts=parts, executor=Auto(num_workers=1), selection=Uniform(1)), rounds=1)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize(("patience", "passes"), [(0.0, STEPS * 5), (1e9, 40)])
def test_forms_are_timed_with_the_steps_that_patience_allows(
    num_workers: int, patience: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(executor: Any, tasks: Sequence[Task], hopeless: float) -> float:
        seen.append([result.report.passes for result in executor.run(train, tasks)])
        return 1.0

    monkeypatch.setattr(probe, "_seconds", counted)
    monkeypatch.setattr(probe, "PATIENCE", patience)
    bench = bench_of(Problem(LocalTraining(batch_size=5, optimizer=sgd())), (1, 40))
    forms = [Form(processes, clients) for processes in (False, True)[:num_workers] for clients in (0, 3)]
    seconds, refusal = time_forms(bench, tasks_of([0, 1], "b"), forms, num_workers)
    assert (list(seconds), refusal) == (forms, "")
    shares = [1, 3] if num_workers == 1 else [1, 3, 2, 6]
    assert seen == [[passes] * share for share in shares]


def test_nets_that_cannot_be_stacked_run_sequentially_and_the_reason_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    executor = Auto(num_workers=1)
    problem = Problem(LocalTraining(optimizer=partial(Adam, lr=0.1)))
    with caplog.at_level(logging.INFO, LOGGER):
        actual = results(executor, bench_of(problem), tasks_of([0, 1, 2]))
    expected = results(Sequential(), bench_of(problem), tasks_of([0, 1, 2]))
    assert all(torch.equal(one[0], two[0]) for one, two in zip(actual, expected, strict=True))
    assert [line.split(":")[0] for line in caplog.messages] == ["Executor for level a", "Executor for level b"]
    assert all(
        "plainly one by one here" in line and "SGD for executor Stacked but got Adam" in line
        for line in caplog.messages
    )


def test_jobs_before_the_first_training_run_sequentially() -> None:
    executor, problem = Auto(), Problem(LocalTraining())
    actual = results(executor, bench_of(problem), tasks_of([0, 1]), statistics)
    expected = results(Sequential(), bench_of(problem), tasks_of([0, 1]), statistics)
    assert all(torch.equal(one[0], two[0]) for one, two in zip(actual, expected, strict=True))
    assert executor.chosen == {}


def test_a_resumed_run_keeps_the_chosen_executor(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    timed_forms: list[tuple[str, int]] = []
    times: TIMES = {("b", True, 2): 0.1, ("c", True, 1): 0.2}
    monkeypatch.setattr(auto, "time_forms", stub(times, timed_forms))

    def weights(rounds: int, name: str, ckpt: str | None = None) -> list[torch.Tensor]:
        module = small_module(executor=Auto(clients=2, num_workers=2))
        trainer = fit(module, rounds=rounds, name=name, ckpt=ckpt)
        trainer.save_checkpoint(tmp_path / f"{name}.ckpt", weights_only=False)
        return [tensor.detach().clone() for tensor in module.models.tensors[0].values()]

    whole = weights(2, "whole")
    weights(1, "half")
    times.clear()
    times[("a", False, 0)] = 0.1  # another or a busy machine would choose otherwise
    count = len(timed_forms)
    resumed = weights(2, "resumed", str(tmp_path / "half.ckpt"))
    assert len(timed_forms) == count
    assert all(torch.equal(one, two) for one, two in zip(whole, resumed, strict=True))


def test_levels_are_grouped_by_their_forms() -> None:
    executor = ByLevel({"a": 0, "b": 2})
    executor.open(bench_of(Problem(LocalTraining())))
    tasks = tasks_of([0, 1, 2], "ab")
    assert sorted(executor.groups(train, tasks)) == [[0], [1, 3], [2], [4], [5]]
    assert executor.most == 2
    assert sorted(executor.groups(statistics, tasks)) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize("settings", [{"clients": 0}, {"num_workers": 0}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Auto(**settings)
