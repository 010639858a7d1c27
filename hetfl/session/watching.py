"""``hetfl report --watch RUN``: a small page on a run that trains, written again after every round."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from hetfl.analysis import Run, load_run
from hetfl.analysis.plots import plot_score_over_bytes, plot_score_over_rounds
from hetfl.analysis.runs import read_metrics
from hetfl.display.formats import format_quantity, format_seconds, format_share
from hetfl.errors import ConfigurationError
from hetfl.files import write_whole
from hetfl.report.rendering import to_live_page
from hetfl.runs.headline import headline_in
from hetfl.runs.metrics_file import HEAD
from hetfl.runs.run_folder import EARLY_END, ended_early

PAGE = "live.html"
"""Name of the page in the run folder."""
SHOWN = ("metrics.csv", EARLY_END, "clients.csv")
"""The files that the page shows, or that tell that the run has ended."""
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "uploaded": ("comm/up_bytes_total", lambda value: format_quantity(value, "B")),
    "downloaded": ("comm/down_bytes_total", lambda value: format_quantity(value, "B")),
    "compression of uploads": ("comm/up_ratio_total", lambda value: f"{value:.1f}×"),
    "computed": ("compute/flops_total", lambda value: format_quantity(value, "FLOP")),
    "simulated time": ("sim/seconds_total", format_seconds),
}
"""Totals of a run by name: their columns and formats."""
FIGURES = (plot_score_over_rounds, plot_score_over_bytes)
Cells: TypeAlias = tuple[list[str], list[list[str]]]
"""A table: the cells of its head, and of its rows."""


def watch(folder: Path, every: float = 2.0, sleep: Callable[[float], None] = time.sleep) -> None:
    """Write the page of a run after each of its rounds, until the run ends or the user presses Ctrl-C.

    Args:
        folder: the run folder.
        every: seconds between two looks at the run's files.
        sleep: waits.

    Raises:
        ConfigurationError: it is not a run folder.
    """
    print(f"{'live page':<18}{folder / PAGE}\n{'':<18}it is written again after every round; Ctrl-C stops this")
    shown = [folder / name for name in SHOWN]
    table = shown[0]
    written: list[int | None] = []  # the times of the files that the page shows
    write_whole(folder / PAGE, page(None, folder, every).encode())
    try:
        while True:
            changed = [path.stat().st_mtime_ns if path.is_file() else None for path in shown]
            if changed != written and table.is_file() and not read_metrics(table, headline_in(folder)).empty:
                run, written = load_run(folder), changed
                write_whole(folder / PAGE, page(run, folder, every).encode())
                if has_ended(run):
                    return
            sleep(every)
    except KeyboardInterrupt:
        return


def has_ended(run: Run) -> bool:
    """Return whether a run has all rounds, and its final test if its settings ask for one."""
    rounds, done = rounds_of(run), len(run.metrics)
    ended = rounds is not None and (done >= rounds or ended_early(run.folder, done, rounds))
    return ended and (not run.config.get("final_test", True) or run.clients is not None)


def rounds_of(run: Run) -> int | None:
    """Return the number of rounds of a run's settings; None if there is none."""
    rounds = (run.config.get("trainer") or {}).get("max_epochs")
    return rounds if isinstance(rounds, int) and rounds > 0 else None


def page(run: Run | None, folder: Path, every: float) -> str:
    """Return the page of a run.

    Args:
        run: the run; None: it has no round yet.
        folder: the run folder.
        every: seconds after which the browser loads the page again, while the run trains.
    """
    over = run is not None and has_ended(run)
    done, rounds = (0, None) if run is None else (len(run.metrics), rounds_of(run))
    state = "The run has ended." if over else "The run trains." if done else "No round is done yet."
    if rounds:
        state += f" {done} of {rounds} rounds are done ({format_share(done / rounds)})."
    return to_live_page(
        refresh=None if over else max(1, round(every)),
        title=f"Run {folder.resolve().parent.name}, {folder.resolve().name}",
        state=state,
        rounds=rounds,
        done=done,
        tables=[] if run is None else [_scores(run), _costs(run)],
        figures=[] if run is None else filter(None, (_figure(run, draw) for draw in FIGURES)),
    )


def _scores(run: Run) -> Cells:
    """Return a table of the scores of the global model, the levels and the heads.

    They are those of the latest validation, and of a test after the last round.
    """
    headline = run.headline
    rows = []
    for part in ("", *run.levels, *run.heads):
        scores = [
            _last(run.metrics, headline.column("val", part)),
            _last(run.metrics[-1:], headline.column("test", part)),
        ]
        shown = ["–" if score is None else headline.shown(score) for score in scores]
        name = part.replace(HEAD, "head ") or "global model"
        rows.append([name, *shown])
    return ["", f"validation {headline.words}", f"test {headline.words}"], rows


def _last(metrics: pd.DataFrame, column: str) -> float | None:
    known = metrics.get(column, pd.Series(dtype="float64")).dropna()
    return float(known.iloc[-1]) if len(known) else None


def _costs(run: Run) -> Cells:
    """Return a table of the totals of the run so far."""
    last = run.metrics.iloc[-1]
    rows = [[name, write(float(last[column]))] for name, (column, write) in COSTS.items() if pd.notna(last.get(column))]
    return ["", "so far"], rows


def _figure(run: Run, draw: Callable[[Run], Axes]) -> str:
    """Return a figure as inline SVG; empty if the run has no scores for it yet."""
    try:
        figure = draw(run).get_figure(root=True)
    except ConfigurationError:
        return ""
    assert figure is not None  # an Axes that was just made has one
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]
