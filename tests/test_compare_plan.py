"""The plan of a comparison: the requested runs, the state of each run, and its next action."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hetfl.compare.plan import (
    Action,
    Contender,
    PlannedRun,
    check_unchanged,
    differences,
    next_action,
    parse_contenders,
    parse_seeds,
    standing,
)
from hetfl.errors import ConfigurationError
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.session.callbacks import ENDED

SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {
        "max_epochs": 3,
        "logger": {"class_path": "hetfl.runs.RunFolder", "init_args": {"root": "runs"}},
    },
    "model": {"class_path": "hetfl.HeteroFL", "init_args": {"local": {"epochs": 5}, "levels": {"a": {"width": 1.0}}}},
    "final_test": True,
}


def planned(root: Path, rounds: int = 3, seed: int = 0, **changes: Any) -> PlannedRun:
    settings = {**copy.deepcopy(SETTINGS), "seed_everything": seed, **changes}
    settings["trainer"]["max_epochs"] = rounds
    return PlannedRun("width", seed, root / "runs" / "width" / f"seed_{seed}", yaml.safe_dump(settings))


def stopped_run(run: PlannedRun, rows: int, saved: int | None = None, tested: bool = False) -> PlannedRun:
    """Write the files of a run that was stopped after ``rows`` rows, with a checkpoint of ``saved`` rounds."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(run.text)
    lines = ["step,val/accuracy,test/accuracy,comm/up_bytes_total"]
    lines += [f"{i},0.{i + 1},{'0.9' if tested and i == rows - 1 else ''},{100 * (i + 1)}" for i in range(rows)]
    (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if saved is not None:
        SafeCheckpointIO().save_checkpoint({"hetfl": {"version": saved}}, run.checkpoint)
    return run


def test_contenders_are_parsed_into_names_and_files(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    for file in (one, two):
        Path(file).touch()
    assert parse_contenders([f"a={one}", f"b-2_x={one},{two}"]) == [
        Contender("a", (one,)),
        Contender("b-2_x", (one, two)),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "Expected at least one -r NAME=FILE"),
        (["pyproject.toml"], "Expected -r NAME=FILE[,FILE...] but got 'pyproject.toml'"),
        (["a="], "but got 'a='"),
        (["=pyproject.toml"], "Expected a name of letters"),
        (["../a=pyproject.toml"], "got '../a'"),
        (["a b=pyproject.toml"], "got 'a b'"),
        (["-a=pyproject.toml"], "got '-a'"),
        (["a=nowhere.yaml"], "got 'nowhere.yaml': there is no such file"),
        (
            ["a=pyproject.toml,"],
            "run a: Expected a configuration file or a name that hetfl configs lists but got '': there",
        ),
        (
            ["a=pyproject.toml", "b=pyproject.toml", "a=pyproject.toml"],
            "Expected every name once in -r but got a twice",
        ),
    ],
)
def test_wrong_contenders_are_refused(given: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ConfigurationError) as error:
        parse_contenders(given)
    assert message in str(error.value)


@given(st.lists(st.integers(0, 2**32 - 1), unique=True))
def test_seeds_are_parsed_in_the_given_order(seeds: list[int]) -> None:
    assert parse_seeds([str(seed) for seed in seeds]) == seeds


@pytest.mark.parametrize("given", [["x"], ["1.0"], ["-1"], [""], [str(2**32)], ["²"], ["true"], ["0", "1", "01"]])
def test_wrong_seeds_are_refused(given: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="--seeds but got"):
        parse_seeds(given)


@pytest.mark.parametrize(
    ("rows", "saved", "tested", "action"),
    [
        (0, None, False, Action.ANEW),  # only its configuration exists
        (1, None, False, Action.ANEW),  # killed before the first checkpoint
        (1, 1, False, Action.RESUME),
        (2, 1, False, Action.RESUME),  # killed between a row and its checkpoint
        (3, 2, False, Action.RESUME),
        (3, 3, False, Action.TEST),  # killed before or in the test
        (3, 3, True, Action.SKIP),
        (2, 2, True, Action.RESUME),  # finished earlier with fewer rounds
    ],
)
def test_the_next_action_after_a_kill(
    tmp_path: Path, rows: int, saved: int | None, tested: bool, action: Action
) -> None:
    assert next_action(stopped_run(planned(tmp_path), rows, saved, tested)) is action


@pytest.mark.parametrize(
    ("rows", "tested", "rounds", "action"),
    [
        (2, False, 3, Action.TEST),
        (2, True, 3, Action.SKIP),
        (2, True, 4, Action.RESUME),  # more rounds are requested
        (3, False, 3, Action.RESUME),  # it was resumed after the early stop
    ],
)
def test_a_run_stopped_early_by_its_settings_is_not_trained_further(
    tmp_path: Path, rows: int, tested: bool, rounds: int, action: Action
) -> None:
    run = stopped_run(planned(tmp_path, rounds), rows, tested=tested)
    SafeCheckpointIO().save_checkpoint({"hetfl": {"version": 2}, ENDED: 3}, run.checkpoint)
    assert next_action(run) is action


def test_a_run_without_a_folder_or_files_begins(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert next_action(run) is Action.BEGIN
    run.folder.mkdir(parents=True)
    assert next_action(run) is Action.BEGIN


@pytest.mark.parametrize(("saved", "action"), [(2, Action.RESUME), (3, Action.SKIP), (None, Action.SKIP)])
def test_without_a_final_test_the_last_checkpoint_marks_a_run_as_finished(
    tmp_path: Path, saved: int | None, action: Action
) -> None:
    assert next_action(stopped_run(planned(tmp_path, final_test=False), 3, saved)) is action


def test_a_finished_run_is_resumed_for_more_rounds(tmp_path: Path) -> None:
    stopped_run(planned(tmp_path), 3, 3, tested=True)
    assert next_action(planned(tmp_path, rounds=4)) is Action.RESUME


def test_a_run_that_ended_early_is_finished_unless_more_rounds_are_requested(tmp_path: Path) -> None:
    run = stopped_run(planned(tmp_path, rounds=9), 4, 4, tested=True)
    assert next_action(run) is Action.RESUME
    run.mark.write_text("9")
    assert next_action(run) is Action.SKIP
    assert next_action(planned(tmp_path, rounds=10)) is Action.RESUME


def test_foreign_checkpoints_are_never_deleted(tmp_path: Path) -> None:
    run = stopped_run(planned(tmp_path), 2)
    (run.folder / "best.ckpt").touch()
    with pytest.raises(ConfigurationError, match=r"last.ckpt, to resume from, but got only other checkpoints"):
        next_action(run)


def test_a_finished_run_without_metrics_is_refused_with_advice(tmp_path: Path) -> None:
    run = stopped_run(planned(tmp_path), 3, 3, tested=True)
    run.mark.write_text("3")
    (run.folder / "metrics.csv").unlink()
    with pytest.raises(ConfigurationError, match=r"metrics.csv but got none: delete .*seed_0 to start the run again"):
        next_action(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.csv", b"step,val/accuracy\n0,0.5\nzz,0.6\n", "whole numbers from 0 in column 'step' of .*got 'zz'"),
        ("metrics.csv", b"step,val/accuracy\n0,0.5\n1,good\n", "shares from 0 to 1 in column 'val/accuracy' of"),
        ("metrics.csv", b"step,val/accuracy\n0,\xff\n", "Expected text in .*metrics.csv but got byte 0xff at 20"),
        ("config.yaml", b"a: \xff\n", "Expected text in .*config.yaml"),
        ("config.yaml", b"a: !!python/name:os.getcwd\n", "Expected YAML in .*config.yaml"),
        ("config.yaml", b"a: &a\n  b: *a\n", "some that lie in themselves"),
        ("config.yaml", b"trainer: 5\n", "Expected settings below trainer in .*config.yaml but got 5"),
        ("config.yaml", b"model: {class_path: x, init_args: [1]}\n", r"below init_args of x in .* but got \[1\]"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    run = stopped_run(planned(tmp_path), 3, 3, tested=True)
    (run.folder / name).write_bytes(content)
    check = check_unchanged if name == "config.yaml" else next_action
    with pytest.raises(ConfigurationError, match=message):
        check(run)


def test_a_damaged_mark_is_ignored(tmp_path: Path) -> None:
    run = stopped_run(planned(tmp_path), 2, 2)
    run.mark.write_bytes(b"\xff")
    assert next_action(run) is Action.RESUME


def test_every_prefix_of_a_metrics_file_can_be_read(tmp_path: Path) -> None:
    run = stopped_run(planned(tmp_path), 3, tested=True)
    whole = (run.folder / "metrics.csv").read_text()
    for end in range(len(whole)):
        (run.folder / "metrics.csv").write_text(whole[:end])
        at = standing(run.folder)
        rows = max(0, whole[:end].count("\n") - 1)
        assert (at.done, at.val_score, at.up_bytes) == ((rows, (rows) / 10, 100.0 * rows) if rows else (0, None, None))
    (run.folder / "metrics.csv").write_text(whole)
    assert standing(run.folder).test_score == 0.9
    assert standing(tmp_path).done == 0


def test_the_accuracy_of_a_run_is_the_latest_reported_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/accuracy\n0,0.5\n1,0.75\n2,\n")
    at = standing(tmp_path)
    assert (at.done, at.val_score, at.test_score) == (3, 0.75, None)


@pytest.mark.parametrize(
    ("key", "was", "now", "change"),
    [
        ("model.local.epochs", "5", "4", lambda s: s["model"]["init_args"]["local"].update(epochs=4)),
        ("model.levels.a.width", "1.0", "0.5", lambda s: s["model"]["init_args"]["levels"]["a"].update(width=0.5)),
        ("model", "hetfl.HeteroFL", "hetfl.FedAvg", lambda s: s["model"].update(class_path="hetfl.FedAvg")),
        ("final_test", "true", "–", lambda s: s.pop("final_test")),
        ("trainer.max_epochs", "3", "2", lambda s: s["trainer"].update(max_epochs=2)),
        ("trainer.precision", "–", "bf16-mixed", lambda s: s["trainer"].update(precision="bf16-mixed")),
    ],
)
def test_differing_settings_are_named(key: str, was: str, now: str, change: Any) -> None:
    planned = copy.deepcopy(SETTINGS)
    change(planned)
    assert differences(SETTINGS, planned) == [(key, was, now)]


def test_seed_folder_and_number_of_rounds_are_not_differences() -> None:
    planned = copy.deepcopy(SETTINGS)
    planned["seed_everything"] = 7
    planned["trainer"]["max_epochs"] = 30
    planned["trainer"]["logger"]["init_args"]["root"] = "elsewhere"
    assert differences(SETTINGS, planned) == []


def test_runs_of_one_name_with_different_settings_are_refused(tmp_path: Path) -> None:
    stopped_run(planned(tmp_path, seed=4), 1)
    check_unchanged(planned(tmp_path, seed=5, rounds=8))
    with pytest.raises(ConfigurationError) as error:
        check_unchanged(planned(tmp_path, seed=5, final_test=False))
    assert "Expected final_test true, as in" in str(error.value)
    assert "seed_4, but got false for run width: use another --out" in str(error.value)
    with pytest.raises(ConfigurationError, match="Expected trainer.max_epochs of at least 3, as in"):
        check_unchanged(planned(tmp_path, seed=4, rounds=2))
    (tmp_path / "runs/width/seed_4/config.yaml").write_text("{")
    with pytest.raises(ConfigurationError, match="Expected YAML"):
        check_unchanged(planned(tmp_path, seed=4))


def test_the_next_action_does_not_depend_on_other_runs(tmp_path: Path) -> None:
    """A run in any state has the same action, whatever the state of another run beside it."""
    states = [(0, None, False), (2, 2, False), (3, 3, True)]
    for one, other in itertools.product(states, repeat=2):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        alone = next_action(stopped_run(planned(tmp_path, seed=0), *one))
        stopped_run(planned(tmp_path, seed=1), *other)
        assert next_action(planned(tmp_path, seed=0)) is alone
