"""The theme of figures, and every figure of the package under it: contrast, styles of lines, axes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from hetfl import analysis
from hetfl.analysis import plot_accuracy_over_rounds
from hetfl.analysis.runs import load_run
from hetfl.analysis.theme import COLOURS, ON_DARK, TINY, contrast, group_styles, ink_on, level_styles
from tests.figure_cases import FIGURES, full_run, report_figures

DARK = "#16181c"
"""Background of reports in dark mode."""
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
"""Matrices on linear RGB that simulate colour blindness (Machado, Oliveira and Fernandes, 2009, severity 1)."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def seen(colour: str, eyes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a colour in CIE Lab, as it is seen with these eyes."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(eyes @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours: list[tuple[str, str]], eyes: NDArray[np.float64]) -> float:
    """Return the smallest distance of the pairs; 2 is just noticeable side by side."""
    return min(float(np.linalg.norm(seen(one, eyes) - seen(other, eyes))) for one, other in colours)


@pytest.mark.parametrize("eyes", BLINDNESS.values(), ids=BLINDNESS)
def test_colours_stay_apart_without_colour_vision(eyes: NDArray[np.float64]) -> None:
    assert nearest(list(itertools.combinations(COLOURS, 2)), eyes) > 25
    assert nearest(list(itertools.combinations(ON_DARK, 2)), eyes) > 15
    for count in range(2, 6):
        levels = [style.colour for style in level_styles("abcdefgh"[:count]).values()]
        assert nearest(list(itertools.pairwise(levels)), eyes) > 15


def test_names_can_be_written_in_every_colour() -> None:
    levels = [style.colour for count in range(1, 13) for style in level_styles("abcdefghijkl"[:count]).values()]
    assert min(contrast(colour, "white") for colour in [*COLOURS, *levels]) >= 4.5
    assert min(contrast(colour, DARK) for colour in ON_DARK) >= 4.5
    assert len(ON_DARK) == len(COLOURS)
    assert all(contrast(ink_on(str(grey)), str(grey)) >= 4.5 for grey in np.linspace(0, 1, 101))


def test_neighbouring_levels_and_groups_differ_in_dashes_and_markers() -> None:
    for styles in (level_styles("abcdefgh"), group_styles("abcdefgh")):
        for one, other in itertools.pairwise(styles.values()):
            assert one.dashes != other.dashes
            assert one.marker != other.marker


def test_the_chance_line_is_drawn_only_where_the_number_of_classes_is_known(tmp_path: Path) -> None:
    folder = full_run(tmp_path / "run")
    texts = [text.get_text() for text in plot_accuracy_over_rounds(load_run(folder)).texts]
    assert "chance: 10 %" in texts
    (folder / "about.json").unlink()
    assert not any("chance" in text.get_text() for text in plot_accuracy_over_rounds(load_run(folder)).texts)


@pytest.fixture(scope="module")
def in_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Figure]:
    return report_figures(tmp_path_factory.mktemp("report"))


def check(figure: Figure) -> None:
    """Check the rules of all figures on one of them."""
    FigureCanvasAgg(figure).draw()
    axes = [ax for ax in figure.axes if ax.get_visible()]
    notes = " ".join(text.get_text() for text in figure.texts)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip():
            assert float(text.get_fontsize()) >= TINY, text.get_text()
            on_a_map = text.axes is not None and bool(text.axes.images) and text in text.axes.texts
            assert on_a_map or contrast(text.get_color(), "white") >= 4.5, text.get_text()
    for ax in axes:
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
            if axis.get_scale() == "log":
                named = [each.xaxis if name == "x" else each.yaxis for each in axes]
                assert any("log scale" in each.get_label_text() for each in named) or "log scale" in notes
        label = ax.get_xlabel()
        assert not label.lower().startswith("round") or label == "Rounds done"
        if label == "Rounds done" and not ax.images:
            low, high = ax.get_xlim()
            assert 0 not in [tick for tick in ax.get_xticks() if low <= tick <= high]
    for ax in axes:
        assert_lines_differ(ax)
    for name in {ax.get_ylabel() for ax in axes} - {""}:
        alike = [ax for ax in axes if ax.get_ylabel() == name and ax.lines]
        assert len({ax.get_ylim() for ax in alike}) <= 1, name


def assert_lines_differ(ax: Axes) -> None:
    """Check that lines of different colours differ in dashes or markers, too, if they are few enough to be named."""
    looks: dict[str, set[tuple[str, str]]] = {}
    for line in ax.lines:
        if len(np.asarray(line.get_xydata())) > 2 and line.get_linestyle() != "None" and line.get_linewidth() > 1:
            pattern = str(line._unscaled_dash_pattern)  # type: ignore[attr-defined]
            looks.setdefault(to_hex(line.get_color()), set()).add((pattern, str(line.get_marker())))
    for one, other in itertools.combinations(looks.values(), 2):
        assert not one & other


def test_every_figure_of_the_package_is_drawn_here() -> None:
    names = {name.removeprefix("plot_") for name in dir(analysis) if name.startswith("plot_")}
    of_accuracy, into_folders = {"accuracy_over_rounds", "accuracy_over_bytes"}, {"run", "clusters"}
    assert names - of_accuracy - into_folders <= set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_runs_follow_the_theme(name: str, tmp_path: Path) -> None:
    check(FIGURES[name](tmp_path))


def test_figures_of_reports_follow_the_theme(in_report: dict[str, Figure]) -> None:
    assert len(in_report) > 10
    for figure in in_report.values():
        check(figure)
