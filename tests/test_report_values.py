"""Values of clients in a report: numbers of hand-written tables, a figure, and no section for runs without values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hetfl.analysis import draw_values, load_client_data, load_run, load_values, plot_values
from hetfl.analysis.pictures import expected_pictures
from hetfl.analysis.values import late_values, rank_correlation
from hetfl.errors import ConfigurationError
from hetfl.report import write_report
from hetfl.report.groups import make_groups
from hetfl.report.values import left_out_table, value_table, valued
from tests.report_cases import write_run

NOISE = [0.9, 0.5, 0.0, 0.2]


def write_values(folder: Path) -> Path:
    """Write values into a run's folder: by ``good`` they fall with the noise, by ``same`` all clients are alike."""
    rows = [(t, k, "good", 1.0 - noise + 0.01 * t) for t in range(6) for k, noise in enumerate(NOISE)]
    rows += [(t, k, "same", 1.0) for t in range(6) for k in (0, 1, 2)]
    rows += [(0, 3, "good_2", -5.0)]
    rows += [(t, k, "left_out", float((k == 0 and t > 2) or (t, k) == (1, 0))) for t in range(6) for k in range(4)]
    pd.DataFrame(rows, columns=["round", "client", "measure", "value"]).to_csv(folder / "values.csv", index=False)
    data = {"client": range(4), "samples": [5, 6, 7, 8], "divergence": [0.1, 0.2, 0.3, np.nan], "noise": NOISE}
    pd.DataFrame(data).to_csv(folder / "client_data.csv", index=False)
    return folder


def test_the_table_has_rank_correlations_and_the_lowest_clients(tmp_path: Path) -> None:
    groups = make_groups({"x": [load_run(write_values(write_run(tmp_path / "run")))]})
    assert value_table(valued(groups)).rows == [
        ["x", "good", "4", "0.80", "-1.00", "1.00", "0, 1, 3"],  # the divergence of client 3 is unknown
        ["x", "same", "3", "–", "–", "–", "0, 1, 2"],
        ["x", "good_2", "1", "–", "–", "–", "3"],
    ]


def test_clients_that_were_left_out_are_listed_with_their_rounds(tmp_path: Path) -> None:
    groups = make_groups({"x": [load_run(write_values(write_run(tmp_path / "run")))]})
    table = left_out_table(valued(groups))
    assert table is not None
    assert table.rows == [["x", "0", "4", "1, 3-5"]]


def test_late_values_are_of_the_last_third() -> None:
    table = pd.DataFrame({"round": [0, 1, 2, 3, 4], "client": 0, "measure": "m", "value": [9.0, 9, 9, 1, 3]})
    assert late_values(table, "m").to_dict() == {0: 2.0}
    x, y = pd.Series([1.0, 2, 2, 4]), pd.Series([5.0, 1, 4, 0])
    ranks = np.array([1, 2.5, 2.5, 4]), np.array([4, 2, 3, 1])
    assert rank_correlation(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_a_report_shows_values_and_a_run_draws_them(tmp_path: Path) -> None:
    folder = write_values(write_run(tmp_path / "run"))
    write_report({"x": [folder]}, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Values of clients" in text
    assert "(plots/values.png)" in text
    assert (tmp_path / "out" / "plots" / "values.png").stat().st_size > 10_000
    drawn = draw_values(folder)
    assert drawn == [folder / "plots" / f"values.{suffix}" for suffix in ("png", "svg")]
    assert set(drawn) <= set(expected_pictures(folder))
    figure = plot_values(load_values(folder), load_client_data(folder), ["good"])
    left, *_, noise, _ = figure.axes
    assert len(left.lines) == 4
    assert noise.get_title(loc="right") == "ρ = -1.00"
    (folder / "values.csv").unlink()
    write_report({"x": [folder]}, tmp_path / "out")
    assert "Values of clients" not in (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "out" / "plots" / "values.png").exists()
    assert draw_values(folder) == []


@pytest.mark.parametrize("cell", ["0,-5,0.1,0", "0,5,1.5,0", "0,5,0.1,", "0,5,0.1,0\n0,5,0.1,0", "a,5,0.1,0"])
def test_another_table_of_clients_is_refused(tmp_path: Path, cell: str) -> None:
    (tmp_path / "client_data.csv").write_text(f"client,samples,divergence,noise\n{cell}\n")
    with pytest.raises(ConfigurationError, match="Expected columns client, samples, divergence, noise, with numbers"):
        load_client_data(tmp_path)
