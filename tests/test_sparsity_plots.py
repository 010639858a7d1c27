"""The headline over the density of masks: the table and the figure of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D

from hetfl.analysis import draw_sparsity, load_run, plot_sparsity, score_over_density
from hetfl.analysis.pictures import expected_pictures
from hetfl.errors import ConfigurationError
from hetfl.runs.headline import FILE, Headline
from hetfl.runs.metrics_file import MetricsFile

DENSITY = [1.0, 1.0, 0.4, 0.4, 0.4, 0.05]
SCORE = [0.5, 0.7, 0.6, 0.9, float("nan"), 0.3]


def written(folder: Path, name: str = "accuracy", density: bool = True) -> Path:
    file = MetricsFile(folder / "metrics.csv")
    for step, (share, score) in enumerate(zip(DENSITY, SCORE, strict=True)):
        cells = {"lr": 0.1} | ({"parts/density": share} if density else {})
        if score == score:
            cells |= {f"val/{name}": score, f"val/{name}_by_level/a": score, f"val/{name}_by_level/b": score}
        file.add(step, cells)
    return folder


def shown(line: Line2D) -> list[tuple[float, float]]:
    return [(round(float(x), 9), round(float(y), 9)) for x, y in np.asarray(line.get_xydata())]


def test_the_table_has_the_last_and_the_best_score_at_each_density(tmp_path: Path) -> None:
    table = score_over_density(load_run(written(tmp_path)))
    assert table.to_dict("list") == {
        "density": [1.0, 0.4, 0.05],
        "rounds": [2, 2, 1],
        "last": [0.7, 0.9, 0.3],
        "best": [0.7, 0.9, 0.3],
    }


def test_the_best_of_an_error_is_the_lowest(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(Headline("mae", higher_is_better=False, percent=False).to_json())
    assert score_over_density(load_run(written(tmp_path, "mae")))["best"].tolist() == [0.5, 0.6, 0.3]


def test_the_figure_shows_rounds_and_the_last_round_at_each_density(tmp_path: Path) -> None:
    """Levels with equal scores share a curve; densities fall to the right."""
    run = load_run(written(tmp_path))
    (ax,) = plot_sparsity(run).axes
    points, line = ax.lines
    assert shown(points) == [(100, 50), (100, 70), (40, 60), (40, 90), (5, 30)]
    assert shown(line) == [(100, 70), (40, 90), (5, 30)]
    assert ax.xaxis_inverted()
    assert [text.get_text() for text in ax.texts] == ["a, b  30.0 %"]
    drawn = draw_sparsity(tmp_path)
    assert [path.name for path in drawn] == ["sparsity.png", "sparsity.svg"]
    assert expected_pictures(tmp_path)[-2:] == drawn


def test_a_run_without_the_column_has_no_figure(tmp_path: Path) -> None:
    folder = written(tmp_path, density=False)
    assert draw_sparsity(folder) == []
    with pytest.raises(ConfigurationError, match="column 'parts/density' .* got none"):
        plot_sparsity(load_run(folder))


def test_a_run_without_validation_has_no_curve(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.add(0, {"parts/density": 0.5, "val/accuracy": float("nan")})
    with pytest.raises(ConfigurationError, match="validation accuracy"):
        score_over_density(load_run(tmp_path))


def test_a_density_that_is_none_is_refused(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv").add(0, {"parts/density": 0.0})
    with pytest.raises(ConfigurationError, match="shares above 0, up to 1"):
        load_run(tmp_path)
