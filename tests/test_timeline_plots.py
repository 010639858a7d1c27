"""The figure of who worked when, and the reader of its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning import Trainer

from hetfl.analysis import draw_timeline, load_timeline, plot_timeline
from hetfl.analysis.pictures import expected_pictures
from hetfl.errors import ConfigurationError
from hetfl.schedule import Buffered
from hetfl.trainer.writing import TIMELINE_COLUMNS
from tests.conftest import small_module
from tests.fleet_cases import varied

ROWS = [
    (0, 7, "b", 0, 0.0, 1.0, 0.0, 0, 1), (0, 2, "b", 0, 0.0, 1.5, 0.5, 1, 1), (1, 4, "a", 0, 0.0, 4.0, 1.0, 1, 1),
    (1, 7, "b", 1, 1.5, 3.0, np.nan, np.nan, 0),
]  # fmt: skip


def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=list(TIMELINE_COLUMNS))


def test_every_arrival_has_its_bar() -> None:
    work, stale = plot_timeline(table(), ["a", "b", "c"]).axes
    assert [label.get_text() for label in work.get_yticklabels()] == ["2", "4", "7"]
    bars = [(bar.get_x(), bar.get_width(), round(bar.get_y() + 0.4)) for bar in work.patches]  # type: ignore[attr-defined]
    assert bars == [(0, 1, 2), (0, 1.5, 0), (0, 4, 1), (1.5, 1.5, 2)]
    *steps, lost = work.lines
    assert [float(np.asarray(step.get_xdata())[0]) for step in steps] == [1.5, 4]
    assert (np.asarray(lost.get_xdata()).tolist(), np.asarray(lost.get_ydata()).tolist()) == ([3], [2])
    assert [bar.get_width() for bar in stale.patches] == [1, 0.25, 0]  # type: ignore[attr-defined]
    assert [label.get_text() for label in stale.get_yticklabels()] == ["a, 1", "b, 2", "c, 0"]
    with pytest.raises(ConfigurationError, match=r"levels \['b'\] but got \['a'\]"):
        plot_timeline(table(), ["b"])


def test_a_run_with_a_schedule_has_the_figure_among_its_pictures(fit: Callable[..., Trainer]) -> None:
    module = small_module(fleet=varied(failure_rate=0.3), schedule=Buffered(size=2))
    folder = Path(str(fit(module, rounds=3, limit_val_batches=0).log_dir))
    assert [file.name for file in draw_timeline(folder)] == ["timeline.png", "timeline.svg"]
    assert folder / "plots/timeline.png" in expected_pictures(folder)
    read = load_timeline(folder)
    assert (read["accepted"] == 0).any()
    read["start"] = read["end"] + 1
    read.to_csv(folder / "timeline.csv", index=False)
    with pytest.raises(ConfigurationError, match="starts before ends, of .*timeline.csv but got others"):
        load_timeline(folder)
    (folder / "timeline.csv").write_text(",".join(TIMELINE_COLUMNS) + "\n")
    assert draw_timeline(folder) == []
    (folder / "timeline.csv").unlink()
    assert draw_timeline(folder) == []
