"""``hetfl report``: its arguments, and the groups of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hetfl.analysis import load_run
from hetfl.cli.parser import OneLineParser
from hetfl.errors import ConfigurationError
from hetfl.report import answer_lines, group_runs, read_material, write_material
from hetfl.session.watching import PAGE, watch

OF_A_REPORT = ("out", "target", "unfinished", "mixed_data")
"""Options that ``--watch`` refuses."""


def main(args: Sequence[str]) -> None:
    """Write a report on run folders.

    Args:
        args: the arguments after the verb.

    Raises:
        ConfigurationError: the runs or the options are invalid.
    """
    options = report_parser().parse_args(list(args))
    if options.watch:
        if given := [f"--{name}" for name in OF_A_REPORT if options[name] not in (None, False)]:
            raise ConfigurationError(f"Expected only a run folder beside --watch but got {' '.join(given)}")
        watch(watched(options.runs))
        return
    if not options.runs:
        raise ConfigurationError("Expected run folders after report but got none: hetfl report RUN... --out DIR")
    if options.out is None:
        raise ConfigurationError("Expected --out, the folder to write the report into, but got none")
    names, folders = zip(*(named_run(argument) for argument in options.runs), strict=True)
    groups = group_runs([load_run(folder) for folder in folders], names)
    material = read_material(
        {name: [run.folder for run in runs] for name, runs in groups.items()},
        target=options.target,
        unfinished=options.unfinished,
        mixed_data=options.mixed_data,
    )
    html = write_material(material, Path(options.out))
    for name, runs in groups.items():
        print(f"{name}: {len(runs)} run{'s' if len(runs) > 1 else ''}")
    print(*answer_lines(material), sep="\n")
    print(f"{'report':<18}{html}")


def report_parser() -> OneLineParser:
    """Return the parser of the arguments after the verb."""
    parser = OneLineParser(
        prog="hetfl report",
        description="Compare finished runs: tables at equal budgets, plots, and a report in HTML and Markdown. Runs "
        "that differ only in their seed are one group.",
    )
    parser.add_argument("runs", nargs="*", metavar="[NAME=]RUN", help="A run folder, and the name of its group.")
    parser.add_argument("--out", type=str, default=None, help="The folder to write into.")
    parser.add_argument(
        "--target",
        type=float,
        default=None,
        help="Validation score for which costs are reported, in the unit of metrics.csv (90 percent accuracy is 0.9); "
        "default: 5 percent worse than the best score of the group whose best score is worst.",
    )
    parser.add_argument("--unfinished", action="store_true", help="Accept unfinished runs.")
    parser.add_argument(
        "--watch", action="store_true", help=f"Write RUN/{PAGE} after every round of one run that trains."
    )
    parser.add_argument("--mixed_data", action="store_true", help="Accept runs on different data.")
    return parser


def watched(runs: Sequence[str]) -> Path:
    """Return the run folder to watch.

    Raises:
        ConfigurationError: there is not one run folder.
    """
    if len(runs) != 1 or not Path(runs[0]).is_dir():
        raise ConfigurationError(f"Expected one run folder to watch but got {' '.join(runs) or 'none'}")
    return Path(runs[0])


def named_run(argument: str) -> tuple[str | None, Path]:
    """Return the name of the group, or None, and the run folder of an argument.

    Raises:
        ConfigurationError: there is an equals sign without a name or without a folder.

    >>> named_run("width=runs/1"), named_run("runs/1")
    (('width', PosixPath('runs/1')), (None, PosixPath('runs/1')))
    """
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():
        return None, Path(argument)
    if not name.strip() or not folder:
        raise ConfigurationError(f"Expected NAME=RUN but got {argument}")
    return name, Path(folder)
