"""Groups of runs: their members, their names, and their differing settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from hetfl.analysis import Run, load_run
from hetfl.analysis.theme import COLOURS, DASHES, group_styles
from hetfl.errors import ConfigurationError
from hetfl.report.groups import ABSENT, Group, differing_settings, group_runs, make_groups
from hetfl.runs.flat_settings import flat_settings

METRICS = pd.DataFrame({"step": [0.0], "val/accuracy": [0.5]})


def make_run(folder: str, seed: int | None = 0, root: str = "runs", **model: Any) -> Run:
    """Return a run in a folder, started with a seed; without a configuration if the seed is None."""
    if seed is None:
        return Run(Path(folder), METRICS)
    logger = {"class_path": "hetfl.runs.RunFolder", "init_args": {"root": root, "name": "n"}}
    parts = {
        "model": {"class_path": "model", "init_args": {"seed": seed, **model}},
        "data": {"class_path": "data", "init_args": {"seed": seed}},
    }
    return Run(Path(folder), METRICS, {"seed_everything": seed, "trainer": {"logger": logger}, **parts})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from("xy")), min_size=1, max_size=8))
def test_runs_form_a_group_exactly_if_they_differ_only_in_seed_and_folder(given_runs: list[Any]) -> None:
    made = [make_run(f"{i}/r", seed, root, lr=lr) for i, (lr, seed, root) in enumerate(given_runs)]
    groups = group_runs(made)
    assert sorted(run.folder for runs in groups.values() for run in runs) == sorted(run.folder for run in made)
    together = {frozenset(run.folder for run in runs) for runs in groups.values()}
    rates = {run.folder: lr for run, (lr, _, _) in zip(made, given_runs, strict=True)}
    assert together == {frozenset(folder for folder in rates if rates[folder] == lr) for lr in rates.values()}


def test_a_list_of_loggers_does_not_separate_groups() -> None:
    one, other = make_run("x/1", 1), make_run("x/2", 2)
    other.config["trainer"]["logger"] = [{"class_path": "hetfl.runs.RunFolder"}, {"class_path": "lightning.W"}]
    assert list(group_runs([one, other])) == ["x"]


def test_groups_are_named_by_folder_and_differing_settings() -> None:
    runs = [make_run("demo/1", density=0.1), make_run("demo/2", density=0.5), make_run("other/1", density=0.7)]
    assert list(group_runs(runs)) == ["demo (density 0.1)", "demo (density 0.5)", "other"]
    runs = [
        make_run("demo/1", c={"class_path": "hetfl.c.TopK"}),
        make_run("demo/2", c={"class_path": "hetfl.c.Identity"}),
    ]
    assert list(group_runs(runs)) == ["demo (c TopK)", "demo (c Identity)"]
    runs = [make_run(f"demo/{i}", a=i, b=i, c=i) for i in range(2)]
    assert list(group_runs(runs)) == ["demo 1", "demo 2"]


def test_given_group_names_come_first_and_are_kept() -> None:
    runs = [make_run("x/1", a=1), make_run("x/2", a=2), make_run("y/3", 3, a=1)]
    groups = group_runs(runs, ["mine", None, "mine"])
    assert {name: [run.folder.name for run in members] for name, members in groups.items()} == {
        "mine": ["1", "3"],
        "x": ["2"],
    }
    assert list(group_runs(runs[:2], ["x", None])) == ["x", "x (a 2)"]
    with pytest.raises(ConfigurationError, match="Expected group names that differ but got 'x \\(a 2\\)' twice"):
        group_runs([*runs[:2], make_run("z/1", a=7)], ["x", None, "x (a 2)"])


def test_runs_without_configuration_are_grouped_by_folder() -> None:
    groups = group_runs([make_run("x/1", None), make_run("y/1", None), make_run("x/2", None)])
    assert {name: len(runs) for name, runs in groups.items()} == {"x": 2, "y": 1}
    assert make_groups(groups)[0].seeds == (ABSENT, ABSENT)


def test_runs_of_a_group_are_sorted_by_seed() -> None:
    (group,) = make_groups({"g": [make_run(f"x/{seed}", seed) for seed in (10, 2, 0)]})
    assert group.seeds == ("0", "2", "10")


def test_settings_are_named_as_on_the_command_line() -> None:
    config = yaml.safe_load(
        """
        model: {class_path: hetfl.HeteroFL, init_args: {net: {class_path: my.Net}, hidden: [1, 2], rate: 0.1, x: null}}
        trainer: {callbacks: [{class_path: a.B, init_args: {c: true}}], empty: {}}
        """
    )
    assert flat_settings(config) == {
        "model": "hetfl.HeteroFL",
        "model.net": "my.Net",
        "model.hidden": "[1, 2]",
        "model.rate": "0.1",
        "model.x": "null",
        "trainer.callbacks[0]": "a.B",
        "trainer.callbacks[0].c": "true",
        "trainer.empty": "{}",
    }


def test_only_differing_settings_are_listed() -> None:
    groups = [
        Group("one", (make_run("x/1", 1, lr=0.1, same=1, here=5, unset=None),)),
        Group("two", (make_run("y/2", 2, "elsewhere", lr=0.2, same=1),)),
    ]
    assert differing_settings(groups) == {"model.lr": ["0.1", "0.2"], "model.here": ["5", ABSENT]}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "Expected at least one run to report on but got none"),
        ({"x": []}, "Expected at least one run to report on but got none"),
        ({"x": [], "y": [make_run("y/1")]}, "Expected at least one run in group x but got none"),
        ({" ": [make_run("y/1")]}, "Expected a group's name to be printable text but got ' '"),
        ({"a\nb": [make_run("y/1")]}, "Expected a group's name to be printable text but got 'a\\\\nb'"),
    ],
)
def test_invalid_groups_are_refused(groups: dict[str, list[Run]], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_groups(groups)


def test_every_group_has_a_different_line_style() -> None:
    styles = group_styles([str(i) for i in range(len(COLOURS) * len(DASHES))])
    assert len({(style.colour, str(style.dashes)) for style in styles.values()}) == len(styles)
    few = [styles[str(i)] for i in range(5)]
    assert len({str(style.dashes) for style in few}) == 5  # distinguishable in grey
    assert len({to_rgb(style.colour) for style in few}) == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("levels.csv", "", "Expected a table in .*levels.csv but got: No columns"),
        (
            "clients.csv",
            "client,level\n0,a\n",
            "Expected a column 'train_samples' in .*clients.csv but got client, level",
        ),
        (
            "clients.csv",
            "client,level,train_samples,test_samples,accuracy,own_accuracy\n0,a,1,1,good,1\n",
            "Expected shares from 0 to 1 in column 'accuracy' of .*clients.csv but got 'good' in line 2",
        ),
    ],
)
def test_unusable_tables_of_a_run_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/accuracy\n0,0.5\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_tables_of_a_run_are_read_and_a_level_may_be_named_na(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/accuracy\n0,0.5\n")
    assert load_run(tmp_path).level_table is None
    assert load_run(tmp_path).clients is None
    (tmp_path / "clients.csv").write_text(
        "client,level,train_samples,test_samples,accuracy,own_accuracy\n0,NA,3,1,0.5,1\n1,1,3,0,,\n"
    )
    clients = load_run(tmp_path).clients
    assert clients is not None
    assert clients["level"].tolist() == ["NA", "1"]
    assert clients["accuracy"].isna().tolist() == [False, True]
