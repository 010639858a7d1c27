"""Writing of the files of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hetfl.analysis import load_run
from hetfl.analysis.pictures import save_figure
from hetfl.analysis.theme import group_styles
from hetfl.files import make_folder, write_whole
from hetfl.report.checks import check_comparable
from hetfl.report.composing import compose
from hetfl.report.embedding import embedded
from hetfl.report.groups import make_groups
from hetfl.report.material import Material, make_material
from hetfl.report.pictures import draw_all, picture_names
from hetfl.report.rendering import to_html, to_markdown
from hetfl.report.summary import summary_table
from hetfl.runs.metrics_file import encoded

PLOTS = "plots"
SUFFIXES = ("png", "svg", "csv")
"""Files of a figure."""


def read_material(
    groups: Mapping[str, Sequence[Path]],
    *,
    target: float | None = None,
    unfinished: bool = False,
    mixed_data: bool = False,
    missing: Sequence[str] = (),
) -> Material:
    """Read groups of runs, check that they can be compared, and decide how.

    Args:
        groups: the folders of the runs of each group, by name; runs of a group differ only in their seed.
        target: the validation score for which costs are reported, in the unit of ``metrics.csv``; None: 5 % worse than
            the best score of the group whose best score is worst.
        unfinished: whether to accept runs with fewer rounds than their configuration has.
        mixed_data: whether to accept runs on different data.
        missing: sentences on runs that were planned and are not in the report.

    Raises:
        ConfigurationError: there are no runs, a run cannot be read, or the runs cannot be compared.
    """
    made = make_groups({name: [load_run(folder) for folder in folders] for name, folders in groups.items()})
    check_comparable(made, allow_unfinished=unfinished, allow_mixed_data=mixed_data)
    return make_material(made, target, missing)


def write_report(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    target: float | None = None,
    unfinished: bool = False,
    mixed_data: bool = False,
) -> Path:
    """Write a report on groups of runs into a folder; see :func:`read_material` and :func:`write_material`.

    Returns:
        The path of ``report.html``.
    """
    return write_material(read_material(groups, target=target, unfinished=unfinished, mixed_data=mixed_data), out)


def write_material(material: Material, out: Path) -> Path:
    """Write ``report.html``, ``report.md``, ``summary.csv``, and the plots as PNG and SVG, with their numbers as CSV.

    The same runs give the same bytes. Files of an earlier report on the same score are replaced.

    Args:
        material: the runs and the decisions about their comparison.
        out: the folder to write into; it is made if it is missing.

    Returns:
        The path of ``report.html``.

    Raises:
        OSError: a file cannot be written; the message names the file.
    """
    plots = make_folder(out / PLOTS, "the report into", out)
    drawings = draw_all(material, group_styles([group.name for group in material.groups]))
    for key in picture_names(material.headline):
        for suffix in SUFFIXES if key not in drawings else ():
            (plots / f"{key}.{suffix}").unlink(missing_ok=True)
    inside = {}
    for number, (key, drawing) in enumerate(drawings.items()):
        # The page finds points by the size of the figure, so figures with lines are not cut to what is drawn.
        save_figure(drawing.figure, plots, key, padding=None if drawing.shown else 0.04)
        write_whole(plots / f"{key}.csv", b"".join(encoded(row) for row in drawing.numbers))
        inside[key] = embedded(f"p{number}-", drawing, (plots / f"{key}.svg").read_text(encoding="utf-8"))
    document = compose(material, drawings)
    summary = summary_table(material.groups, material.validated).to_csv(index=False, lineterminator="\n")
    write_whole(out / "summary.csv", summary.encode())
    write_whole(out / "report.md", to_markdown(document, PLOTS).encode())
    write_whole(out / "report.html", to_html(document, inside, material.groups, PLOTS).encode())
    return out / "report.html"
