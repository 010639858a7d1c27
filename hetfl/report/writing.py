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
from hetfl.report.groups import make_groups
from hetfl.report.material import make_material
from hetfl.report.pictures import draw_all, picture_names
from hetfl.report.rendering import to_html, to_markdown
from hetfl.report.summary import summary_table

PLOTS = "plots"


def write_report(
    groups: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    target: float | None = None,
    unfinished: bool = False,
    mixed_data: bool = False,
) -> Path:
    """Write a report on groups of runs: ``report.html``, ``report.md``, ``summary.csv``, and the plots as PNG and SVG.

    The same runs give the same bytes. Files of an earlier report on the same score are replaced.

    Args:
        groups: the folders of the runs of each group, by name; runs of a group differ only in their seed.
        out: the folder to write into; it is made if it is missing.
        target: the validation score for which costs are reported, in the unit of ``metrics.csv``; None: 5 % worse than
            the best score of the group whose best score is worst.
        unfinished: whether to accept runs with fewer rounds than their configuration has.
        mixed_data: whether to accept runs on different data.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigurationError: there are no runs, a run cannot be read, or the runs cannot be compared.
        OSError: a file cannot be written; the message names the file.
    """
    made = make_groups({name: [load_run(folder) for folder in folders] for name, folders in groups.items()})
    check_comparable(made, allow_unfinished=unfinished, allow_mixed_data=mixed_data)
    material = make_material(made, target)
    plots = make_folder(out / PLOTS, "the report into", out)
    figures = draw_all(material, group_styles([group.name for group in made]))
    for key in picture_names(material.headline):
        for suffix in ("png", "svg") if key not in figures else ():
            (plots / f"{key}.{suffix}").unlink(missing_ok=True)
    for key, drawing in figures.items():
        save_figure(drawing.figure, plots, key, padding=0.04)
    document = compose(material, figures)
    summary = summary_table(made, material.validated).to_csv(index=False, lineterminator="\n")
    write_whole(out / "summary.csv", summary.encode())
    write_whole(out / "report.md", to_markdown(document, PLOTS).encode())
    html = to_html(document, {key: (plots / f"{key}.svg").read_bytes() for key in figures})
    write_whole(out / "report.html", html.encode())
    return out / "report.html"
