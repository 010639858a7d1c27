"""Calibration against an independent binning, accuracy per class against a count, and their figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetfl import ConfigurationError
from hetfl.analysis import (
    calibration_error,
    class_accuracy,
    load_run,
    plot_class_accuracy,
    plot_comparison,
    plot_predictions,
    plot_reliability,
    reliability,
)
from hetfl.analysis.theme import WRONG
from hetfl.runs.metrics_file import MetricsFile
from tests.test_plots import UP_BYTES, write_run


def predictions(samples: int, classes: int, scale: float, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, classes, generator=source)
    return logits, torch.randint(classes, (samples,), generator=source)


def binned(logits: Tensor, targets: Tensor, bins: int) -> list[list[tuple[float, bool]]]:
    """Return confidence and success of the samples of each bin, sorted in one by one."""
    samples_by_bin: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        weights = [math.exp(value - max(row)) for value in row]
        confidence = max(weights) / sum(weights)
        samples_by_bin[min(int(confidence * bins), bins - 1)].append((confidence, row.index(max(row)) == target))
    return samples_by_bin


def predicted_class(logits: Tensor) -> int:
    row = logits.tolist()
    return int(row.index(max(row)))


@settings(max_examples=80)
@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.1, 20), st.integers(1, 20), st.integers(0, 999))
def test_calibration_equals_an_independent_binning(n: int, k: int, scale: float, bins: int, seed: int) -> None:
    logits, targets = predictions(n, k, scale, seed)
    # Rounding may move a confidence at a bin's edge to either side.
    edges = logits.double().softmax(-1).amax(-1) * bins
    assume(bool((((edges - edges.round()).abs() > 1e-4) | (edges > bins - 1e-4)).all()))
    groups = binned(logits, targets, bins)
    gaps = [abs(sum(right for _, right in g) - sum(conf for conf, _ in g)) for g in groups]
    assert calibration_error(logits, targets, bins) == pytest.approx(sum(gaps) / n, abs=1e-5)
    table = reliability(logits, targets, bins)
    assert table["samples"].tolist() == [len(group) for group in groups]
    assert np.allclose(table["low"], np.arange(bins) / bins)
    assert np.allclose(table["high"], np.arange(1, bins + 1) / bins)
    for row, group in zip(table.itertuples(), groups, strict=True):
        if group:
            assert row.confidence == pytest.approx(np.mean([conf for conf, _ in group]), abs=1e-5)
            assert row.accuracy == pytest.approx(np.mean([right for _, right in group]), abs=1e-12)
        else:
            assert math.isnan(row.confidence)  # type: ignore[arg-type]
            assert math.isnan(row.accuracy)  # type: ignore[arg-type]


def test_calibration_of_known_predictions_by_hand() -> None:
    sure, targets = 1000 * torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 0])  # confidence 1, half of them right
    assert calibration_error(sure, targets) == pytest.approx(0.5, abs=1e-6)
    assert reliability(sure, targets)["samples"].tolist() == [0] * 14 + [4]
    unsure = torch.zeros(4, 2)  # confidence 1/2 for class 0, half of them right; 1/2 belongs to the upper bin
    assert calibration_error(unsure, targets, bins=10) == pytest.approx(0.0, abs=1e-6)
    assert reliability(unsure, targets, bins=10)["samples"].tolist() == [0] * 5 + [4] + [0] * 4


def test_full_confidence_belongs_to_the_last_bin() -> None:
    nearly = math.log(0.98 / 0.02)
    logits, targets = torch.tensor([[1000.0, 0.0], [nearly, 0.0]]), torch.tensor([1, 0])  # wrong, then right
    assert calibration_error(logits, targets, bins=10) == pytest.approx((1.98 - 1) / 2, abs=1e-6)


def test_logits_between_0_and_1_are_not_taken_as_probabilities() -> None:
    logits, targets = torch.tensor([[0.9, 0.1]]), torch.tensor([0])
    confidence = 1 / (1 + math.exp(-0.8))
    assert calibration_error(logits, targets) == pytest.approx(1 - confidence, abs=1e-6)


@given(st.integers(1, 30), st.integers(2, 5), st.integers(0, 99))
def test_class_accuracy_equals_a_count_one_by_one(n: int, k: int, seed: int) -> None:
    (logits, targets), (others, _) = predictions(n, k, 1.0, seed), predictions(n, k, 1.0, seed + 1)
    table = class_accuracy({"a": logits, "b": others}, targets)
    assert list(table.columns) == ["a", "b"]
    assert list(table.index) == list(range(k))
    for name, level_logits in (("a", logits), ("b", others)):
        for label in range(k):
            right = [predicted_class(level_logits[i]) == label for i in range(n) if targets[i] == label]
            assert table.loc[label, name] == pytest.approx(np.mean(right) if right else np.nan, nan_ok=True)


# Figures.


def test_reliability_diagrams_show_the_error_of_each_level() -> None:
    sure, targets = 1000 * torch.eye(2)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 0])
    figure = plot_reliability({"a": sure, "b": torch.zeros(4, 2)}, targets)
    assert [ax.get_title() for ax in figure.axes] == ["level a: error 50.0 points", "level b: error 0.0 points"]
    heights = [patch.get_height() for patch in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert heights[-1] == pytest.approx(50.0)


def test_the_class_accuracy_map_shows_its_numbers() -> None:
    table = class_accuracy({"a": torch.eye(3)[[0, 0, 1]]}, torch.tensor([0, 1, 1]))
    assert [text.get_text() for text in plot_class_accuracy(table).axes[0].texts] == ["100", "50"]


def test_wrong_predictions_are_titled_with_the_true_class() -> None:
    figure = plot_predictions(torch.rand(3, 8, 8), torch.tensor([1, 2, 3]), torch.tensor([1, 7, 3]))
    titles = [ax.title for ax in figure.axes]
    assert [title.get_text() for title in titles] == ["1", "2, not 7", "3"]
    assert [title.get_color() != WRONG for title in titles] == [True, False, True]


def test_runs_are_compared_at_common_levels(tmp_path: Path) -> None:
    for name, levels in (("width", "abc"), ("depth", "ab")):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, levels, rounds=4)
    MetricsFile(tmp_path / "depth" / "metrics.csv").add(4, {"comm/up_bytes_total": 5 * UP_BYTES})  # not validated
    runs = {name: load_run(tmp_path / name) for name in ("width", "depth")}
    figure = plot_comparison(runs, over="comm/up_bytes_total")
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["level a", "level b"]
    for ax, level in zip(figure.axes, "ab", strict=True):
        for line, run in zip(ax.lines, runs.values(), strict=True):
            expected = 100 * run.series(f"val/accuracy_by_level/{level}").dropna()
            assert np.allclose(line.get_xdata(), UP_BYTES / 1e6 * np.arange(1, 5))
            assert np.allclose(line.get_ydata(), expected)
        ends = [f"{name} {100 * run.series(f'val/accuracy_by_level/{level}')[3]:.1f} %" for name, run in runs.items()]
        assert [text.get_text() for text in ax.texts] == ends
    for name in runs:
        path = tmp_path / name / "metrics.csv"
        metrics = pd.read_csv(path)
        metrics.assign(**{"comm/down_bytes_total": 3 * metrics["comm/up_bytes_total"]}).to_csv(path, index=False)
    both = plot_comparison({name: load_run(tmp_path / name) for name in runs}, over="comm/bytes_total")
    assert np.allclose(both.axes[0].lines[0].get_xdata(), 4 * UP_BYTES / 1e6 * np.arange(1, 5))
    with pytest.raises(ConfigurationError, match="Expected column 'compute/flops_total' in .*metrics.csv but got none"):
        plot_comparison(runs, over="compute/flops_total")
    metrics.assign(**{"val/accuracy_by_level/b": np.nan}).to_csv(path, index=False)
    with pytest.raises(ConfigurationError, match="a validation accuracy of level b in .*metrics.csv but got none"):
        plot_comparison({name: load_run(tmp_path / name) for name in runs})
    with pytest.raises(ConfigurationError, match="Expected a level that all runs have"):
        plot_comparison({"depth": runs["depth"], "other": load_run(write_run(tmp_path, "x", rounds=2))})
