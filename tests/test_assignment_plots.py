"""The figure of the levels that an assignment drew, and the reader of its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lightning import Trainer

from hetfl.analysis import draw_assignment, load_assignment, plot_drawn_levels
from hetfl.analysis.assignment_plots import COLUMNS
from hetfl.analysis.pictures import expected_pictures
from hetfl.errors import ConfigurationError
from hetfl.fleet import DiscountedUCB
from tests.conftest import small_module
from tests.fleet_cases import varied

ROWS = [
    (0, 4, "a", "slow", 8.0, 0, 0.5, 0.1), (0, 7, "a", "fast", 2.0, 0, 1.0, 0.1), (1, 4, "b", "slow", 4.0, 0, 0.5, 0.1),
    (1, 2, "b", "fast", 1.0, 0, 0.0, 0.0), (3, 4, "a", "slow", 9.0, 1, 0.0, 0.0), (5, 7, "b", "fast", 1.0, 0, 1.0, 0.1),
]  # fmt: skip


def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=COLUMNS)


def test_every_draw_has_its_place_and_its_colour() -> None:
    figure = plot_drawn_levels(table(), ["a", "b", "c"])
    clients, devices = figure.axes
    assert [label.get_text() for label in clients.get_yticklabels()] == ["4", "2", "7"]  # the slow device first
    image = np.asarray(clients.images[0].get_array())
    expected = np.full((3, 6), -1)
    for round, client, level, *_ in ROWS:
        expected[[4, 2, 7].index(client), round] = "ab".index(level)
    assert image.tolist() == expected.tolist()
    (late, border) = clients.lines
    assert (np.asarray(late.get_xdata()).tolist(), np.asarray(late.get_ydata()).tolist()) == ([4], [0])
    assert np.asarray(border.get_ydata()).tolist() == [0.5, 0.5]
    assert [label.get_text() for label in devices.get_yticklabels()][::3] == ["slow, first third", "fast, first third"]
    widths = np.array([bar.get_width() for bar in devices.patches]).reshape(2, 3, 3)  # type: ignore[attr-defined]
    assert widths.tolist() == [
        [[50, 50, 0], [100, 0, 0], [0, 0, 0]],
        [[50, 50, 0], [0, 0, 0], [0, 100, 0]],
    ]


def test_a_run_that_learnt_has_the_figure_among_its_pictures(fit: Callable[..., Trainer]) -> None:
    plain, learnt = (
        Path(
            str(fit(small_module(fleet=varied(), assignment=policy), rounds=2, limit_val_batches=0, name=name).log_dir)
        )
        for name, policy in (("plain", None), ("learnt", DiscountedUCB()))
    )
    assert draw_assignment(plain) == []
    files = draw_assignment(learnt)
    assert [file.name for file in files] == ["assignment.png", "assignment.svg"]
    values = {learnt / f"plots/values.{end}" for end in ("png", "svg")}  # of the rewards
    assert set(expected_pictures(learnt)) - set(files) - values == {
        learnt / file.relative_to(plain) for file in expected_pictures(plain)
    }
    (learnt / "assignment.csv").write_text(",".join(COLUMNS) + "\n")
    assert draw_assignment(learnt) == []
    assert not set(files) & set(expected_pictures(learnt))


@pytest.mark.parametrize(
    ("old", "new"),
    [("reward", "gain"), (",0.5,", ",-0.5,"), (",0.5,", ",much,"), (",0.5,", ",0.5,7,"), ("0,4", "inf,4")],
)
def test_other_tables_are_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "assignment.csv"
    table().to_csv(path, index=False)
    pd.testing.assert_frame_equal(load_assignment(tmp_path), table())
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ConfigurationError, match="Expected columns round, client, .* but got others"):
        load_assignment(tmp_path)
    path.unlink()
    with pytest.raises(ConfigurationError, match="of a run whose assignment learns, but got no such file"):
        load_assignment(tmp_path)


def test_unknown_levels_and_empty_tables_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Expected draws of levels \['a'\] but got \['b'\]"):
        plot_drawn_levels(table(), ["a"])
    with pytest.raises(ConfigurationError, match=r"Expected draws of levels \['a'\] but got none"):
        plot_drawn_levels(table()[:0], ["a"])
