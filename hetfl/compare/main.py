"""``hetfl compare``: runs of every configuration with every seed, in one folder, and a report on all of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import pandas as pd
from lightning import LightningDataModule
from rich.console import Console

from hetfl.analysis import Run
from hetfl.compare.grid import parse_grid, seeds_of, spread_out
from hetfl.compare.plan import (
    Action,
    Contender,
    PlannedRun,
    check_unchanged,
    check_validated,
    next_action,
    parse_contenders,
    parse_seeds,
    standing,
)
from hetfl.compare.processes import only_one, run_all
from hetfl.compare.resolving import naming, rehearse, resolve
from hetfl.display.formats import cell, format_quantity, plain_table, print_table
from hetfl.display.runs import RunLine, RunsProgress, State
from hetfl.errors import ConfigurationError
from hetfl.report import answer_lines, read_material, write_material
from hetfl.report.checks import differing_data
from hetfl.report.groups import Group
from hetfl.report.spread import spread_of
from hetfl.runs.headline import ACCURACY, Headline, common_headline, headline_in

DESCRIPTION = "Run every configuration with every seed, unless the run is finished, and write a report."
EPILOG = """
Any other --KEY VALUE (or -c FILE) is a setting of all runs and overrides their files. The folder of a run is
DIR/runs/NAME/seed_SEED; the file beside it has its output. If the command is stopped by Ctrl-C, a kill or a failure,
the same command continues: finished runs are not repeated. Names, seeds and rounds can be added later; other settings
need another DIR.
"""
NOT_FOR_ALL = {
    "--seed_everything": "use --seeds",
    "--ckpt_path": "compared runs start with their first round",
    "--print_config": "hetfl fit --print_config prints one configuration",
}
"""Arguments of ``hetfl fit`` that ``hetfl compare`` refuses, with the reason."""
COSTS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "uploaded": ("up_bytes", lambda value: format_quantity(value, "B")),
    "downloaded": ("down_bytes", lambda value: format_quantity(value, "B")),
    "compression": ("up_ratio", lambda value: f"{value:.1f}×"),
}
"""Costs of a run by heading: attribute of :class:`~hetfl.compare.plan.Standing`, and format."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of the other verbs."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"Expected arguments as hetfl compare --help says but got: {message}")


def main(args: Sequence[str]) -> None:
    """Run every configuration with every seed, unless the run is finished, and write the report.

    Args:
        args: the arguments after the verb.

    Raises:
        ConfigurationError: an argument or a setting is wrong; nothing was run.
        SystemExit: with status 1 if a run failed; with 128 plus the number of the signal if a signal stopped the runs.
    """
    given, settings = _parse(args)
    out = Path(given.out)
    grid = parse_grid(given.grid)
    seeds = parse_seeds(seeds_of(grid, given.seeds))
    contenders = spread_out(parse_contenders(given.runs), grid)
    runs = plan(contenders, seeds, settings, out)
    if not given.mixed_data:
        check_same_data(runs)
    actions = {run: next_action(run) for run in runs}
    headlines = {}
    loaded: dict[str, LightningDataModule] = {}
    for contender in contenders:
        of_name = {run: action for run, action in actions.items() if run.name == contender.name}
        # Settings that have trained before need no rehearsal.
        if any(action in (Action.BEGIN, Action.ANEW) for action in of_name.values()):
            with naming(contender.name):
                headlines[contender.name] = rehearse(_arguments(contender, settings), loaded)
        else:
            headlines[contender.name] = headline_in(next(iter(of_name)).folder)
    headline = common_headline(headlines)
    if given.dry_run:
        _print_plan(actions)
        return
    loaded.clear()
    with only_one(out) as lock:
        swept = {each.name: dict(each.swept) for each in contenders}
        options = {"jobs": given.jobs, "mixed_data": given.mixed_data, "headline": headline}
        run_comparison(runs, out, lock=lock, swept=swept, **options)


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments of ``hetfl compare``, and those that are settings of every run."""
    given, settings = _parser().parse_known_args(list(args))
    if not (given.jobs.isascii() and given.jobs.isdecimal() and int(given.jobs) > 0):
        raise ConfigurationError(f"Expected a number of runs at a time, from 1, in --jobs but got {given.jobs!r}")
    given.jobs = int(given.jobs)
    if settings and not settings[0].startswith("-"):
        raise ConfigurationError(f"Expected --KEY VALUE or another option but got {settings[0]!r}")
    for option in (argument.partition("=")[0] for argument in settings):
        if reason := NOT_FOR_ALL.get(option):
            raise ConfigurationError(f"Expected no {option} in compare but got one: {reason}")
    if given.out is None:
        raise ConfigurationError("Expected --out DIR, the folder of the comparison, but got none")
    nearest = next(path for path in (Path(given.out), *Path(given.out).absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "read-only" if nearest.is_dir() else "a file"
        raise ConfigurationError(f"Expected a folder to write to in --out but got {given.out}: {nearest} is {why}")
    return given, settings


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hetfl compare", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    add = parser.add_argument
    add(
        "-r",
        "--run",
        dest="runs",
        metavar="NAME=FILE[,FILE...]",
        action="append",
        default=[],
        help="a name and its YAML files or packaged configurations, of which later ones override earlier ones; "
        "repeat it for every name",
    )
    add("--seeds", nargs="+", metavar="SEED", help="seeds of every configuration (default: 0)")
    add(
        "--grid",
        metavar="KEY=VALUE[,VALUE...]",
        action="append",
        default=[],
        help="every configuration with every value of a setting; with several --grid, every combination of values; "
        "seed=0,1 is --seeds 0 1",
    )
    add("--out", metavar="DIR", help="folder of the comparison, with its runs and report.html")
    add(
        "--jobs",
        default="1",
        metavar="N",
        help="number of runs at a time (default: 1); with several, worker processes are divided among "
        "them, and threads, unless OMP_NUM_THREADS is set",
    )
    add("--mixed_data", action="store_true", help="allow runs on different data")
    add("--dry_run", action="store_true", help="check everything, print the plan, and run nothing")
    return parser


def plan(contenders: Sequence[Contender], seeds: Sequence[int], settings: Sequence[str], out: Path) -> list[PlannedRun]:
    """Return the runs of a comparison with their parsed configurations, ordered by name and seed.

    Raises:
        ConfigurationError: a configuration is wrong, or differs from that of earlier runs of its name.
    """
    runs = []
    for contender in contenders:
        with naming(contender.name):
            texts = resolve(_arguments(contender, settings), seeds)
        folder = out / "runs" / contender.name
        runs += [PlannedRun(contender.name, seed, folder / f"seed_{seed}", text) for seed, text in texts.items()]
    for run in runs:
        check_validated(run)
        check_unchanged(run)
    return runs


def _arguments(contender: Contender, settings: Sequence[str]) -> list[str]:
    swept = [f"--{key}={value}" for key, value in contender.swept]
    return [*(part for file in contender.files for part in ("-c", file)), *settings, *swept]


def check_same_data(runs: Sequence[PlannedRun]) -> None:
    """Refuse to compare runs on different data; only the seed of the partition may differ.

    Raises:
        ConfigurationError: a setting of the data differs; the message names it.
    """
    first = {run.name: run for run in reversed(runs)}
    groups = [Group(run.name, (Run(run.folder, pd.DataFrame(), run.settings),)) for run in reversed(first.values())]
    for key, one, value, other, different in differing_data(groups):
        raise ConfigurationError(
            f"Expected runs on the same data but got {key} {value} in {one} and {different} in {other}: "
            "allow it with --mixed_data"
        )


def run_comparison(
    runs: Sequence[PlannedRun],
    out: Path,
    *,
    lock: int,
    jobs: int,
    mixed_data: bool,
    headline: Headline = ACCURACY,
    swept: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> None:
    """Execute unfinished runs, and write a report on the finished ones.

    Args:
        runs: the runs.
        out: the folder of the comparison.
        lock: file descriptor of the lock, which every process keeps open.
        jobs: number of runs at a time.
        mixed_data: whether to accept runs on different data.
        headline: the score by which models are compared.
        swept: by name of a configuration, its values in a grid by key; empty without a grid.

    Raises:
        SystemExit: a run failed (after a report on the finished runs), or a signal stopped the runs (without a report).
    """
    lines = [_line(run, headline) for run in runs]
    with RunsProgress(lines, jobs) as progress:
        if finished := sum(line.state == "done" for line in lines):
            progress.print(f"{finished} of {len(runs)} runs finished before")
        stopped = run_all(runs, lines, progress, lock=lock, jobs=jobs)
    if stopped is not None:
        sys.stderr.write("hetfl: stopped; run the same command again to continue\n")
        sys.exit(128 + stopped)
    over = [run for run, line in zip(runs, lines, strict=True) if line.state == "done"]
    names = list(dict.fromkeys(run.name for run in runs))
    groups = {name: members for name in names if (members := [run for run in over if run.name == name])}
    if not groups:
        sys.stderr.write("hetfl: error: no report: no run is finished\n")
        sys.exit(1)
    _print_results(groups, headline, swept)
    folders = {name: [run.folder for run in members] for name, members in groups.items()}
    failed = [_failure(run, line) for run, line in zip(runs, lines, strict=True) if run not in over]
    # unfinished=True: a run that its settings ended before its last round is finished.
    material = read_material(folders, unfinished=True, mixed_data=mixed_data, missing=failed)
    report = write_material(material, out)
    print(*answer_lines(material), sep="\n")
    print(f"{'report':<18}{report}")
    if failed:
        missing = ", ".join(name for name in names if name not in groups)
        none = f"; no run of {missing} is finished" if missing else ""
        sys.stderr.write(f"hetfl: error: {len(failed)} of {len(runs)} runs failed and are not in the report{none}\n")
        sys.exit(1)


def _failure(run: PlannedRun, line: RunLine) -> str:
    return f"{run.title} is missing: it failed after {line.done} of {line.rounds} rounds."


def _line(run: PlannedRun, headline: Headline) -> RunLine:
    at = standing(run.folder)
    state: State = "done" if next_action(run) is Action.SKIP else "waiting"
    line = RunLine(run.name, run.seed, run.rounds, state=state, headline=headline)
    return replace(line, done=at.done, score=at.score, stage=at.stage)


def _print_plan(actions: dict[PlannedRun, Action]) -> None:
    table = plain_table("Plan")
    for heading in ("run", "seed", "rounds"):
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    table.add_column("to do")
    for run, action in actions.items():
        table.add_row(cell(run.name), str(run.seed), f"{standing(run.folder).done}/{run.rounds}", action.value)
    print_table(table, Console())


def _print_results(
    groups: dict[str, list[PlannedRun]], headline: Headline, swept: Mapping[str, Mapping[str, str]]
) -> None:
    """Print the test headline and the costs of the finished runs, by name, with a column for each key of a grid."""
    keys = list(next(iter(swept.values()), ()))
    table = plain_table("Comparison: means over seeds")
    for heading in ("run", *(key.rpartition(".")[2] for key in keys), "seeds", f"test {headline.words}", *COSTS):
        table.add_column(cell(heading), justify="left" if heading == "run" else "right", no_wrap=True)
    for name, runs in groups.items():
        reached = [standing(run.folder) for run in runs]
        score = spread_of([at.test_score for at in reached])
        costs = {name: spread_of([getattr(at, column) for at in reached]) for name, (column, _) in COSTS.items()}
        table.add_row(
            cell(name.partition(",")[0] if keys else name),
            *(cell(swept[name][key]) for key in keys),
            str(len(runs)),
            "–" if score is None else score.shown(headline),
            *("–" if cost is None else COSTS[name][1](cost.mean) for name, cost in costs.items()),
        )
    print_table(table, Console())
