"""Reading run folders, and the plots of runs."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from hetfl.analysis import Run, load_run, plot_accuracy_over_bytes, plot_accuracy_over_rounds, plot_run
from hetfl.analysis.plots import spread
from hetfl.errors import ConfigurationError
from hetfl.runs.metrics_file import MetricsFile

RATIO = 25.0
UP_BYTES = 400_000.0


def write_run(folder: Path, levels: str = "abcde", rounds: int = 30, step_between_ends: float = 0.002) -> Path:
    """Write a run whose levels end close together, as in real runs."""
    file = MetricsFile(folder / "metrics.csv")
    for step in range(rounds):
        learnt = 1 - np.exp(-step / 5)
        accuracy = {level: 0.1 + (0.83 - step_between_ends * i) * learnt for i, level in enumerate(levels)}
        file.add(step, {f"val/accuracy_by_level/{level}": value for level, value in accuracy.items()})
        file.add(step, {"val/accuracy": accuracy[levels[0]], "comm/up_bytes": UP_BYTES, "comm/up_ratio": RATIO})
        file.add(step, {"comm/up_bytes_total": UP_BYTES * (step + 1)})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("model:\n  class_path: hetfl.HeteroFL\nseed_everything: 3\n")
    return write_run(tmp_path)


def test_a_run_is_read_from_its_folder(folder: Path) -> None:
    run = load_run(folder)
    assert run.levels == ("a", "b", "c", "d", "e")
    assert run.config == {"model": {"class_path": "hetfl.HeteroFL"}, "seed_everything": 3}
    assert list(run.metrics["step"]) == list(range(30))
    assert run.metrics["comm/up_bytes_total"].iloc[-1] == 30 * UP_BYTES
    assert run.series("val/accuracy_by_level/e").iloc[0] == 0.1


def test_columns_of_version_0_1_are_read_under_their_current_names(tmp_path: Path) -> None:
    cells = {"val/accuracy/a": 0.5, "val/accuracy/head_2": 0.25, "test/accuracy/a": 0.75, "cluster/accuracy/0": 1.0}
    MetricsFile(tmp_path / "metrics.csv").add(0, cells)
    run = load_run(tmp_path)
    assert (run.levels, run.heads) == (("a",), ("head_2",))
    assert run.series("val/accuracy_by_level/a")[0] == 0.5
    assert run.series("val/accuracy_by_head/2")[0] == 0.25
    assert run.series("test/accuracy_by_level/a")[0] == 0.75
    assert run.series("cluster/accuracy/0")[0] == 1.0


def test_a_run_without_configuration_has_an_empty_config(tmp_path: Path) -> None:
    assert load_run(write_run(tmp_path)).config == {}


def test_an_incomplete_last_line_is_ignored(folder: Path) -> None:
    with (folder / "metrics.csv").open("a") as file:
        file.write("30,0.1")
    assert len(load_run(folder).metrics) == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Expected a run folder with a metrics.csv but got no file '.*metrics.csv'"),
        ("", "Expected a table of rounds in .*metrics.csv but got: No columns"),
        ("step,lr\n", "Expected at least one round in .*metrics.csv but got only a header"),
        ("epoch,lr\n0,1\n", "Expected a column 'step' in .*metrics.csv but got epoch, lr"),
        ("step,lr\n0,1\n1,2,3\n", "Expected a table of rounds in .*metrics.csv but got: .*line 3"),
    ],
)
def test_unusable_metrics_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\n", "Expected YAML in .*config.yaml but got: "),
        ("- 1\n", "Expected a mapping in .*config.yaml but got list"),
        ("a: !!python/object/apply:os.getcwd []\n", "Expected YAML in .*config.yaml but got: could not determine"),
    ],
)
def test_an_unusable_or_unsafe_configuration_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_run(folder)
    assert "\n" not in str(caught.value)


def test_plots_are_written_with_their_labels(folder: Path) -> None:
    files = plot_run(folder)
    assert sorted(path.relative_to(folder).as_posix() for path in files) == [
        *("plots/accuracy_over_bytes.png", "plots/accuracy_over_bytes.svg"),
        *("plots/accuracy_over_rounds.png", "plots/accuracy_over_rounds.svg"),
    ]
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    rounds, sent = (re.findall(r">([^<>\n]+)</text>", path.read_text()) for path in files if path.suffix == ".svg")
    ends = [
        f"{level}  {100 * load_run(folder).series(f'val/accuracy_by_level/{level}').iloc[-1]:.1f} %"
        for level in "abcde"
    ]
    assert set(ends) < set(rounds)
    assert set(ends) < set(sent)
    assert {"Rounds done", "Accuracy (%)", "Validation accuracy of each level over rounds"} < set(rounds)
    assert {"Uploaded by all clients (MB, log scale)", "Accuracy (%)"} < set(sent)
    assert "the updates, dense float32: 300 MB (25.0× all uploads)" in sent  # 30 rounds of 0.4 MB at 25×
    assert not any(text.startswith("global") for text in rounds)  # the global model is level a


def test_equal_runs_give_equal_svg_files(folder: Path) -> None:
    first = [path.read_bytes() for path in plot_run(folder) if path.suffix == ".svg"]
    assert first == [path.read_bytes() for path in plot_run(folder) if path.suffix == ".svg"]


def label_boxes(ax: Axes) -> list[Bbox]:
    """Return the boxes of the line-end labels, in pixels."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = [child for child in ax.get_children() if isinstance(child, Annotation) and child.get_text().endswith(" %")]
    # The box of the text only, without the line that leads to it.
    return [super(Annotation, label).get_window_extent(canvas.get_renderer()) for label in labels]


@pytest.mark.parametrize("plot", [plot_accuracy_over_rounds, plot_accuracy_over_bytes])
@pytest.mark.parametrize("step_between_ends", [0.0, 0.002, 0.1])
def test_labels_do_not_overlap(tmp_path: Path, plot: Callable[[Run], Axes], step_between_ends: float) -> None:
    ax = plot(load_run(write_run(tmp_path, "abcdefgh", step_between_ends=step_between_ends)))
    boxes = label_boxes(ax)
    assert len(boxes) == 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def tick_boxes(ax: Axes) -> list[Bbox]:
    """Return the boxes of the horizontal axis's tick labels, including minor ticks."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low, high = ax.get_xlim()
    ticks = [*ax.xaxis.get_major_ticks(), *ax.xaxis.get_minor_ticks()]
    shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    return [label.get_window_extent(canvas.get_renderer()) for label in shown]


@pytest.mark.parametrize("rounds", [1, 2, 5, 7, 30, 3000])
@pytest.mark.parametrize("size", [0.017, 1e-4, 400.0])
@pytest.mark.parametrize("ratio", [pytest.param(1.0, marks=pytest.mark.slow), RATIO])
def test_tick_labels_of_a_byte_axis_do_not_overlap(folder: Path, rounds: int, size: float, ratio: float) -> None:
    metrics = load_run(folder).metrics.iloc[[0] * rounds].reset_index(drop=True)
    metrics["comm/up_bytes_total"] = size * UP_BYTES * (metrics.index + 1)
    metrics["comm/up_bytes"] = size * UP_BYTES
    metrics["comm/up_ratio"] = ratio
    boxes = tick_boxes(plot_accuracy_over_bytes(Run(folder, metrics)))
    assert len(boxes) > 1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_rounds_without_uploads_are_not_on_a_logarithmic_axis(folder: Path) -> None:
    metrics = load_run(folder).metrics
    metrics.loc[:3, "comm/up_bytes_total"] = 0
    assert plot_accuracy_over_bytes(Run(folder, metrics)).get_xlim()[0] > 0
    metrics["comm/up_bytes_total"] = metrics["comm/up_bytes"] = 0
    assert plot_accuracy_over_bytes(Run(folder, metrics)).get_xscale() == "linear"


def test_characters_missing_in_the_font_give_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = plot_run(write_run(tmp_path / "模型 مدل", "模b"))
    assert any("模型 مدل" in path.read_text() for path in files if path.suffix == ".svg")


def test_every_level_has_its_own_colour_dashes_and_marker(folder: Path) -> None:
    lines = plot_accuracy_over_rounds(load_run(folder)).get_lines()
    looks = [(line.get_color(), line.get_marker()) for line in lines if str(line.get_label()).startswith("_child")]
    assert len(set(looks[:5])) == 5
    assert len({marker for _, marker in looks[:5]}) == 5


def test_the_global_model_is_drawn_if_it_is_not_a_level(tmp_path: Path) -> None:
    write_run(tmp_path, "ab")
    MetricsFile(tmp_path / "metrics.csv").add(29, {"val/accuracy": 0.95})
    ax = plot_accuracy_over_rounds(load_run(tmp_path))
    assert len(ax.get_lines()) == 3
    assert "global  95.0 %" in [text.get_text() for text in ax.texts]


def test_curves_have_the_values_of_the_file_and_skip_gaps(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in range(6):
        file.add(step, {"comm/up_bytes": 2e6, "comm/up_bytes_total": 2e6 * (step + 1), "comm/up_ratio": 4.0})
        if step % 2 == 1:  # validated every second round
            file.add(step, {"val/accuracy": 0.1 * step})
    run = load_run(tmp_path)
    (line,) = plot_accuracy_over_rounds(run).get_lines()
    assert np.allclose(line.get_xydata(), [(2, 10), (4, 30), (6, 50)])
    line, *_ = plot_accuracy_over_bytes(run).get_lines()
    assert np.allclose(line.get_xydata(), [(4, 10), (8, 30), (12, 50)])


def test_a_plot_is_drawn_on_the_given_axes(folder: Path) -> None:
    ax = Figure().add_subplot()
    assert plot_accuracy_over_rounds(load_run(folder), ax) is ax
    assert len(ax.get_lines()) == 5


def test_one_round_can_be_plotted(tmp_path: Path) -> None:
    assert len(plot_run(write_run(tmp_path, rounds=1))) == 4


@pytest.mark.parametrize("column", ["comm/up_bytes", "comm/up_bytes_total", "comm/up_ratio"])
def test_a_missing_column_is_named(folder: Path, column: str) -> None:
    whole = load_run(folder)
    run = replace(whole, metrics=whole.metrics.drop(columns=column))
    with pytest.raises(ConfigurationError, match=f"Expected column '{column}' in .*metrics.csv but got none"):
        plot_accuracy_over_bytes(run)


def test_a_run_without_validation_is_refused_by_name(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv").add(0, {"train/loss": 1.0})
    with pytest.raises(ConfigurationError, match="Expected column 'val/accuracy' in .*metrics.csv but got none"):
        plot_accuracy_over_rounds(load_run(tmp_path))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.floats(0, 10))
def test_spread_keeps_the_gap_the_bounds_and_the_order(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap, low=0.0, high=100.0)
    order = np.argsort(positions, kind="stable")
    assert np.all(np.diff(moved[order]) >= gap - 1e-9)
    assert moved.min() >= -1e-9
    assert moved.max() <= 100 + 1e-9


@pytest.mark.parametrize("positions", [(1.0, 1.2, 1.1), (0.0, 0.1, 4.0), (3.9, 4.0, 4.0)])
def test_spread_moves_as_little_as_possible(positions: tuple[float, ...]) -> None:
    grid = np.linspace(0, 4, 41)
    trials = np.stack(np.meshgrid(grid, grid, grid), axis=-1).reshape(-1, 3)
    gaps = np.diff(trials[:, np.argsort(positions, kind="stable")], axis=1)
    feasible = trials[(gaps >= 1 - 1e-9).all(axis=1)]
    best = float(((feasible - positions) ** 2).sum(axis=1).min())
    moved = spread(positions, gap=1.0, low=0.0, high=4.0)
    assert float(np.sum((moved - positions) ** 2)) <= best + 1e-9


def test_spread_is_even_without_enough_room() -> None:
    assert spread([5.0, 5.0, 5.0], gap=10.0, low=0.0, high=10.0).tolist() == [0.0, 5.0, 10.0]
