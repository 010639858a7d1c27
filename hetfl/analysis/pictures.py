"""Writing of figures, and the list of figures that a finished run has."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from hetfl.analysis.clusters import has_splits, load_clusters, splits_of
from hetfl.files import write_whole
from hetfl.runs.headline import Headline, headline_in

NOT_IN_THE_FONT = r"Glyph .* missing from|Matplotlib currently does not support .* natively"
"""Warnings of matplotlib for letters that its font lacks; an SVG still shows them, in a font of the viewer."""


ASSIGNMENT_TABLE = "assignment.csv"
"""The table of the draws of an assignment that learns."""
TIMELINE_TABLE = "timeline.csv"
"""The table of the arrivals of updates, where clients do not wait for each other."""
BUDGET_COLUMNS = ("budget/spent_bytes", "budget/spent_entries")
"""Columns of ``metrics.csv``, one of which a run with an upload budget has."""

VALUE_TABLES = ("values.csv", "client_data.csv")
"""The tables of a run with measures of values."""
DENSITY_COLUMN = "parts/density"
"""Column of ``metrics.csv`` of a run whose masks change their density."""


def pictures_of(headline: Headline) -> tuple[str, str]:
    """Return the names of the figures that every validated run has: the headline over rounds, and over bytes.

    >>> pictures_of(Headline())
    ('accuracy_over_rounds', 'accuracy_over_bytes')
    """
    return f"{headline.name}_over_rounds", f"{headline.name}_over_bytes"


def save_figure(figure: Figure, folder: Path, name: str, padding: float | None = 0.1) -> list[Path]:
    """Write a figure as PNG and SVG; the same figure gives the same bytes, and text in the SVG stays text.

    Args:
        figure: the figure.
        folder: the folder to write into.
        name: name of the files without suffix.
        padding: margin around the drawing in inches; None: the files have the size of the figure.

    Raises:
        OSError: a file cannot be written; the message names the file. An existing file then stays unchanged.
    """
    files = []
    for suffix, metadata in (("png", {}), ("svg", {"Date": None})):
        path = folder / f"{name}.{suffix}"
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hetfl"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=NOT_IN_THE_FONT)
            cut = {} if padding is None else {"bbox_inches": "tight", "pad_inches": padding}
            options: dict[str, Any] = {"metadata": metadata, **cut}
            figure.savefig(drawn := io.BytesIO(), format=suffix, dpi=200, **options)
        write_whole(path, drawn.getvalue())
        files.append(path)
    return files


def expected_pictures(folder: Path) -> list[Path]:
    """Return the files that ``plot_run``, ``plot_clusters`` and the functions ``draw_...`` write for a run.

    Args:
        folder: the run folder.

    Raises:
        ConfigurationError: ``clusters.csv`` or the headline of the run cannot be read.
    """
    names = [*pictures_of(headline_in(folder))]
    if (folder / "clusters.csv").is_file():
        names.append("clusters")
        if has_splits(folder) and splits_of(load_clusters(folder)):
            names.append("cluster_tree")
    if had_budget(folder):
        names.append("budget")
    if (folder / ASSIGNMENT_TABLE).is_file() and _has_rows(folder / ASSIGNMENT_TABLE):
        names.append("assignment")
    if (folder / TIMELINE_TABLE).is_file() and _has_rows(folder / TIMELINE_TABLE):
        names.append("timeline")
    if had_density(folder):
        names.append("sparsity")
    if had_values(folder):
        names.append("values")
    return [folder / "plots" / f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]


def had_budget(folder: Path) -> bool:
    """Return whether the first line of a run's ``metrics.csv`` names a column of an upload budget."""
    return any(name in _columns(folder) for name in BUDGET_COLUMNS)


def had_density(folder: Path) -> bool:
    """Return whether the first line of a run's ``metrics.csv`` names the density of masks."""
    return DENSITY_COLUMN in _columns(folder)


def had_values(folder: Path) -> bool:
    """Return whether a run has values of clients, and the table with which they are compared."""
    return all((folder / name).is_file() and _has_rows(folder / name) for name in VALUE_TABLES)


def _columns(folder: Path) -> list[str]:
    """Return the first line of a run's ``metrics.csv``; empty if it cannot be read."""
    try:
        with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError):
        return []


def _has_rows(path: Path) -> bool:
    """Return whether a table has a line below its head."""
    with path.open("rb") as file:
        return sum(1 for _ in zip(range(2), file, strict=False)) == 2
