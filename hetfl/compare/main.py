"""``hetfl compare``: every configuration with every seed, in one folder, and the report on them all."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pandas as pd
from rich.console import Console
from rich.table import Table

from hetfl.analysis import Run
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
from hetfl.display.formats import cell, format_quantity
from hetfl.display.runs import RunLine, RunsProgress, State
from hetfl.errors import ConfigurationError
from hetfl.report import write_report
from hetfl.report.checks import differing_data
from hetfl.report.groups import Group
from hetfl.report.spread import spread_of
from hetfl.runs.headline import ACCURACY, Headline, common_headline, headline_in

DESCRIPTION = "Run every configuration with every seed, as far as that has not been done, and write a report."
EPILOG = """
Any other --KEY VALUE (or -c FILE) is a setting of all runs, on top of their files. Each run has a folder of its own,
DIR/runs/NAME/seed_SEED, and its output beside it. The same command again goes on where it was stopped, by Ctrl-C, a
kill or a failure: what is finished is not repeated. More names, seeds or rounds may be asked for later; other settings
need another DIR.
"""
NOT_FOR_ALL = {
    "--seed_everything": "--seeds gives them",
    "--ckpt_path": "compared runs begin at their first round",
    "--print_config": "hetfl fit --print_config prints one configuration",
}
"""Arguments of ``hetfl fit`` that make no sense here, and why."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as the other verbs do."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"Expected arguments as hetfl compare --help says but got: {message}")


def main(args: Sequence[str]) -> None:
    """Run every configuration with every seed, as far as that has not been done, and write the report.

    Args:
        args: what follows the verb.

    Raises:
        ConfigurationError: something is wrong that a user can put right; nothing was run.
        SystemExit: with status 1 if a run failed, with 128 and the signal's number if one stopped it all.
    """
    given, settings = _parse(args)
    out = Path(given.out)
    contenders = parse_contenders(given.runs)
    runs = plan(contenders, parse_seeds(given.seeds), settings, out)
    if not given.mixed_data:
        check_same_data(runs)
    actions = {run: next_action(run) for run in runs}
    headlines = {}
    for contender in contenders:
        own = {run: action for run, action in actions.items() if run.name == contender.name}
        # What has run before needs no rehearsal.
        if any(action in (Action.BEGIN, Action.ANEW) for action in own.values()):
            with naming(contender.name):
                headlines[contender.name] = rehearse(_arguments(contender, settings))
        else:
            headlines[contender.name] = headline_in(next(iter(own)).folder)
    headline = common_headline(headlines)
    if given.dry_run:
        _print_plan(actions)
        return
    with only_one(out) as lock:
        run_comparison(runs, out, lock=lock, jobs=given.jobs, mixed_data=given.mixed_data, headline=headline)


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return our own arguments, and those that are settings of every run."""
    given, settings = _parser().parse_known_args(list(args))
    if not (given.jobs.isascii() and given.jobs.isdecimal() and int(given.jobs) > 0):
        raise ConfigurationError(f"Expected a number of runs at a time, from 1, in --jobs but got {given.jobs!r}")
    given.jobs = int(given.jobs)
    if settings and not settings[0].startswith("-"):
        raise ConfigurationError(f"Expected --KEY VALUE or another option but got {settings[0]!r}")
    for option in (argument.partition("=")[0] for argument in settings):
        if reason := NOT_FOR_ALL.get(option):
            raise ConfigurationError(f"Expected no {option} in compare but got it: {reason}")
    if given.out is None:
        raise ConfigurationError("Expected --out DIR, the folder of the comparison, but got none")
    there = next(path for path in (Path(given.out), *Path(given.out).absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "read-only" if there.is_dir() else "a file"
        raise ConfigurationError(f"Expected a folder to write to in --out but got {given.out}: {there} is {why}")
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
        help="what to compare: a name and its YAML files, or names of hetfl configs, later ones on top; once per name",
    )
    add("--seeds", nargs="+", default=["0"], metavar="SEED", help="seeds of every run (default: 0)")
    add("--out", metavar="DIR", help="folder of the comparison, with its runs and report.html")
    add(
        "--jobs",
        default="1",
        metavar="N",
        help="how many runs at a time (default: 1); with more, each has its share of the cores, unless OMP_NUM_THREADS "
        "says how many",
    )
    add("--mixed_data", action="store_true", help="compare runs on different data all the same")
    add("--dry_run", action="store_true", help="check everything, print what would be done, and do nothing")
    return parser


def plan(contenders: Sequence[Contender], seeds: Sequence[int], settings: Sequence[str], out: Path) -> list[PlannedRun]:
    """Return the runs of a comparison, by name and seed, their configurations parsed.

    Raises:
        ConfigurationError: one of them is wrong, or not that with which runs of its name were made.
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
    return [*(part for file in contender.files for part in ("-c", file)), *settings]


def check_same_data(runs: Sequence[PlannedRun]) -> None:
    """Refuse to compare runs on different data; the draw of who has what may differ by the seed.

    Raises:
        ConfigurationError: they differ in a setting of the data; names it.
    """
    first = {run.name: run for run in reversed(runs)}
    groups = [Group(run.name, (Run(run.folder, pd.DataFrame(), run.settings),)) for run in reversed(first.values())]
    for key, one, value, other, different in differing_data(groups):
        raise ConfigurationError(
            f"Expected runs on the same data but got {key} {value} in {one} and {different} in {other}: "
            "allow it with --mixed_data"
        )


def run_comparison(
    runs: Sequence[PlannedRun], out: Path, *, lock: int, jobs: int, mixed_data: bool, headline: Headline = ACCURACY
) -> None:
    """Run what is not finished, and report on what is.

    Args:
        runs: the runs.
        out: the folder of the comparison.
        lock: file descriptor that every process keeps open.
        jobs: how many run at a time.
        mixed_data: whether to report on runs on different data.
        headline: the score by which models are compared.

    Raises:
        SystemExit: a run failed, or a signal stopped it all; what is finished is reported on in the first case.
    """
    lines = [_line(run, headline) for run in runs]
    with RunsProgress(lines, jobs) as progress:
        if finished := sum(line.state == "done" for line in lines):
            progress.print(f"{finished} of {len(runs)} runs finished before")
        stopped = run_all(runs, lines, progress, lock=lock, jobs=jobs)
    if stopped is not None:
        sys.stderr.write("hetfl: stopped; the same command goes on from here\n")
        sys.exit(128 + stopped)
    over = [run for run, line in zip(runs, lines, strict=True) if line.state == "done"]
    names = list(dict.fromkeys(run.name for run in runs))
    groups = {name: members for name in names if (members := [run for run in over if run.name == name])}
    if not groups:
        sys.stderr.write("hetfl: error: no report: no run is finished\n")
        sys.exit(1)
    _print_results(groups, headline)
    folders = {name: [run.folder for run in members] for name, members in groups.items()}
    # A run that ended by itself is finished, even if before its last round: it may stop early by its settings.
    report = write_report(folders, out, unfinished=True, mixed_data=mixed_data)
    print(f"{'report':<18}{report}")
    if failed := len(runs) - len(over):
        missing = ", ".join(name for name in names if name not in groups)
        none = f", nor is {missing}, of which no run is finished" if missing else ""
        sys.stderr.write(f"hetfl: error: {failed} of {len(runs)} runs failed, and are not in the report{none}\n")
        sys.exit(1)


def _line(run: PlannedRun, headline: Headline) -> RunLine:
    at = standing(run.folder)
    state: State = "done" if next_action(run) is Action.SKIP else "waiting"
    return RunLine(run.name, run.seed, run.rounds, done=at.done, score=at.score, state=state, headline=headline)


def _print_plan(actions: dict[PlannedRun, Action]) -> None:
    table = Table(title="What would be done", title_justify="left")
    for heading in ("run", "seed", "rounds"):
        table.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    table.add_column("to do")
    for run, action in actions.items():
        table.add_row(cell(run.name), str(run.seed), f"{standing(run.folder).done}/{run.rounds}", action.value)
    Console().print(table)


def _print_results(groups: dict[str, list[PlannedRun]], headline: Headline) -> None:
    """Print, per name, the test's headline and uploaded bytes of its finished runs."""
    table = Table(title="Comparison: means over seeds", title_justify="left")
    for heading in ("run", "seeds", f"test {headline.words}", "uploaded"):
        table.add_column(cell(heading), justify="left" if heading == "run" else "right", no_wrap=True)
    for name, runs in groups.items():
        reached = [standing(run.folder) for run in runs]
        score = spread_of([at.test_score for at in reached])
        uploaded = spread_of([at.up_bytes for at in reached])
        table.add_row(
            cell(name),
            str(len(runs)),
            "–" if score is None else score.shown(headline),
            "–" if uploaded is None else format_quantity(uploaded.mean, "B"),
        )
    Console().print(table)
