"""Figures of a report: texts do not overlap, and each group has the same style everywhere."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from hetfl.analysis.theme import COLOURS, group_styles
from hetfl.report.figures import draw_panels
from hetfl.report.panels import Axis, Panel
from hetfl.report.series import Band, band_of

NAMES = ("width", "depth_with_a_long_name_that_goes_on", "γ-FedHT", "$dense$")


def make_band(end: float, last: float = 50.0, n: int = 2) -> Band:
    x = np.linspace(last / 10, last, 10)
    mean = end * (1 - np.exp(-x / last * 4))
    return Band(x, mean, mean - 0.05, mean + 0.05, n)


def make_panels(number: int, ends: Sequence[float], lasts: Sequence[float]) -> list[Panel]:
    bands = {name: make_band(end, last) for name, end, last in zip(NAMES, ends, lasts, strict=False)}
    return [Panel(f"{'abcdefg'[i]}, 12.1–14.3 MFLOP", bands) for i in range(number)]


def draw(panels: Sequence[Panel], axis: Axis | None = None) -> Figure:
    return draw_panels(panels, axis or Axis("Rounds"), group_styles(NAMES[: len(panels[0].bands)]))


def text_boxes(figure: Figure) -> dict[str, Bbox]:
    """Return the boxes of a figure's texts in pixels: titles, axis names and group names, without tick labels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes: dict[str, Bbox] = {}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if any(letter.isalpha() for letter in text.get_text()):
            # The box of an annotation's text only, without the line that leads to it.
            boxes[f"{len(boxes)}: {text.get_text()}"] = (
                Text.get_window_extent(text, renderer)
                if isinstance(text, Annotation)
                else text.get_window_extent(renderer)
            )
    return boxes


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(
    ("ends", "lasts"),
    [
        ([0.9, 0.9, 0.9, 0.9], [50, 50, 50, 50]),
        ([0.9, 0.899, 0.2, 0.1], [50, 50, 50, 50]),
        ([0.9, 0.8, 0.7, 0.6], [50, 40, 30, 20]),
        ([0.9, 0.8], [1000, 5]),
    ],
)
def test_texts_of_figures_do_not_overlap(number: int, ends: list[float], lasts: list[float]) -> None:
    boxes = text_boxes(draw(make_panels(number, ends, lasts)))
    over = [(a, b) for (a, one), (b, other) in itertools.combinations(boxes.items(), 2) if one.overlaps(other)]
    assert over == []


def test_groups_are_labelled_at_line_ends_if_these_are_at_the_right() -> None:
    at_ends = draw(make_panels(2, [0.9, 0.5], [50, 50]))
    assert not at_ends.legends
    notes = [text.get_text() for text in at_ends.findobj(Annotation) if isinstance(text, Annotation)]
    assert notes == ["width", "depth_with_a_long_name_that…"]
    above = draw(make_panels(2, [0.9, 0.5], [50, 30]))
    assert len(above.legends) == 1
    assert not above.findobj(Annotation)


def test_labels_at_line_ends_have_distinct_colours() -> None:
    for number in (len(COLOURS), len(COLOURS) + 1):
        names = [f"group {i}" for i in range(number)]
        bands = {name: make_band(0.1 * i + 0.05) for i, name in enumerate(names)}
        figure = draw_panels([Panel("a", bands)], Axis("Rounds"), group_styles(names))
        notes = [note for note in figure.findobj(Annotation) if isinstance(note, Annotation)]
        assert len({note.get_color() for note in notes}) == len(notes)
        shown = [text.get_text().strip() for legend in figure.legends for text in legend.get_texts()]
        assert [note.get_text() for note in notes] + shown == names
        looks = {(line.get_color(), str(line.get_linestyle())) for line in legend_lines(figure)}
        assert len(looks) == len(shown)
        boxes = text_boxes(figure)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))


def legend_lines(figure: Figure) -> list[Line2D]:
    return [line for legend in figure.legends for line in legend.get_lines()]


def test_an_axis_is_logarithmic_if_line_ends_are_far_apart() -> None:
    assert draw(make_panels(1, [0.9, 0.5], [100, 30])).axes[0].get_xscale() == "linear"
    assert draw(make_panels(1, [0.9, 0.5], [100, 10])).axes[0].get_xscale() == "log"
    assert draw(make_panels(1, [0.9, 0.5], [100, 10]), Axis("x", log=False)).axes[0].get_xscale() == "linear"


def test_a_group_has_one_style_in_every_panel() -> None:
    panels = make_panels(5, [0.9, 0.5, 0.3], [50, 50, 50])
    figure = draw(panels, Axis("MB", scale=10.0))
    for ax, panel in zip(figure.axes, panels, strict=True):
        lines = [line for line in ax.get_lines() if isinstance(line, Line2D)]
        for line, (name, style) in zip(lines, group_styles(NAMES[:3]).items(), strict=True):
            assert line.get_color() == style.colour
            assert np.allclose(line.get_xydata(), np.stack([panel.bands[name].x / 10, 100 * panel.bands[name].mean], 1))


def test_seeds_have_thin_lines_to_their_own_ends_and_the_mean_ends_with_the_first_of_them() -> None:
    curves = {str(seed): (np.arange(1.0, 4 + seed), 0.1 * np.arange(1.0, 4 + seed)) for seed in range(3)}
    band = band_of(curves)
    assert band is not None
    *thin, thick = draw([Panel("a", {"width": band})]).axes[0].get_lines()
    assert [float(np.asarray(line.get_xdata())[-1]) for line in thin] == [3, 4, 5]
    assert float(np.asarray(thick.get_xdata())[-1]) == 3
    assert all(line.get_linewidth() < thick.get_linewidth() for line in thin)
    assert [line.get_gid() for line in (*thin, thick)] == [*(f"mark g0 s{seed}" for seed in range(3)), "mark g0 mean"]


def test_a_single_run_has_one_line_and_a_single_point_is_marked() -> None:
    alone = {"width": make_band(0.9, n=1)}
    assert len(draw([Panel("a", alone)]).axes[0].get_lines()) == 1
    point = Band(np.array([3.0]), np.array([0.5]), np.array([0.5]), np.array([0.5]), 1)
    (line,) = draw([Panel("a", {"width": point})]).axes[0].get_lines()
    assert line.get_marker() == "o"
