"""``values.csv``: a row per round, client and measure, which a resumed run continues with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from hetfl import FederatedModule
from hetfl.aggregators import ValueMean
from hetfl.analysis import load_client_data, load_values, values_by_round
from hetfl.data import LabelNoise
from hetfl.errors import ConfigurationError
from hetfl.hooks import ClipDelta
from hetfl.runs import RunFolder
from hetfl.runs.round_rows import append_rows, drop_rounds
from hetfl.selection import Uniform
from hetfl.value import GradientCosine, LossDrop, Reputation, Value
from tests.conftest import small_data, small_module

Fit = Callable[..., Trainer]
COLUMNS = ("round", "client", "measure", "value")


def measuring() -> FederatedModule:
    """Return a module with two measures that only write, and one that weighs clients and has another inside."""
    values: list[Value] = [GradientCosine(), LossDrop()]
    return small_module(measures=values, aggregator=ValueMean(Reputation(of=GradientCosine(leave_out=False))))


def test_every_measure_writes_its_values(fit: Fit) -> None:
    module = measuring()
    data = small_data(client_transform=LabelNoise([0.0, 0.5]))
    trainer = fit(module, data, rounds=3, limit_val_batches=0)
    table = load_values(Path(str(trainer.log_dir)))
    assert set(table["measure"]) == {"GradientCosine", "LossDrop", "Reputation", "GradientCosine_2"}
    counts = table.groupby(["measure", "round"]).size()
    assert [counts["GradientCosine", round] for round in range(3)] == [4, 4, 4]  # the cohort
    reported = [table[(table["measure"] == "GradientCosine") & (table["round"] <= last)] for last in range(3)]
    known = [rows["client"].nunique() for rows in reported]
    assert [counts["Reputation", round] for round in range(3)] == known  # all that have reported
    assert ("LossDrop", 0) not in counts.index  # no client has an earlier loss in the first round
    clients = load_client_data(Path(str(trainer.log_dir)))
    assert clients["samples"].tolist() == list(data.sizes)
    assert clients["noise"].tolist() == [(k % 2) * 0.5 for k in range(12)]
    assert clients["divergence"].between(0, 1).all()
    last = values_by_round(table, "Reputation").loc[2]
    assert last.dropna().to_dict() == pytest.approx(module.aggregator.first.values)  # type: ignore[attr-defined]


def test_a_resumed_run_continues_the_file_with_the_same_bytes(fit: Fit, tmp_path: Path) -> None:
    whole = Path(str(fit(measuring(), rounds=4, name="whole", limit_val_batches=0).log_dir)) / "values.csv"
    first = measuring()
    trainer = fit(first, rounds=2, name="begun", limit_val_batches=0)
    folder = Path(str(trainer.log_dir))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    append_rows(folder / "values.csv", COLUMNS, [(2, 0, "LossDrop", 9.0)])  # of a round without a checkpoint
    with (folder / "values.csv").open("a") as file:
        file.write("2,1,Los")
    del trainer, first
    options: dict[str, Any] = {"ckpt": str(tmp_path / "half.ckpt"), "limit_val_batches": 0}
    logger = RunFolder(str(tmp_path), "begun", folder=str(folder))
    fit(measuring(), rounds=4, logger=logger, **options)
    assert (folder / "values.csv").read_bytes() == whole.read_bytes()


def test_rows_are_whole_after_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "values.csv"
    append_rows(path, COLUMNS, [(0, 1, "a", 0.5)])
    with path.open("a") as file:
        file.write("1,1,")
    append_rows(path, COLUMNS, [(1, 2, "a", 0.25)])
    assert path.read_text() == "round,client,measure,value\n0,1,a,0.5\n1,2,a,0.25\n"
    drop_rounds(path, 1)
    assert path.read_text() == "round,client,measure,value\n0,1,a,0.5\n"
    drop_rounds(tmp_path / "none.csv", 1)
    assert not (tmp_path / "none.csv").exists()


def test_a_header_that_a_failed_write_cut_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "values.csv").write_text("round,cli")
    append_rows(tmp_path / "values.csv", COLUMNS, [(1, 2, "a", 0.25)])
    assert (tmp_path / "values.csv").read_text() == "round,client,measure,value\n1,2,a,0.25\n"


@pytest.mark.parametrize(
    "text",
    [
        "round,client,measure,value\n0,1,a,nan\n",
        "round,client,measure,value\n0,1,a,1\n0,1,a,2\n",
        "round,client,measure,value\n0,1.5,a,1\n",
        "round,client,value\n0,1,1\n",
        "round,client,measure,value\nx,1,a,1\n",
    ],
)
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "values.csv").write_text(text)
    with pytest.raises(ConfigurationError, match="Expected columns round, client, measure, value, with finite"):
        load_values(tmp_path)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="of a run with measures of values, but got no such file"):
        load_values(tmp_path)
    (tmp_path / "values.csv").write_text("round,client,measure,value\n0,1,a,1\n")
    with pytest.raises(ConfigurationError, match="one of the measures a but got 'b'"):
        values_by_round(load_values(tmp_path), "b")
    (tmp_path / "values.csv").write_text("step,client\n")
    with pytest.raises(ConfigurationError, match="'round' in the first cell of line 1 of .* but got 'step'"):
        drop_rounds(tmp_path / "values.csv", 1)


class NotFinite(Value):
    """A measure with a value that is not a number."""

    def of_round(self) -> dict[int, float]:
        return {3: float("nan")}


def test_wrong_measures_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigurationError, match="finite values from NotFinite but got nan of client 3 in round 1"):
        fit(small_module(measures=[NotFinite()], selection=Uniform(2)), rounds=1)
    cosine = GradientCosine()
    with pytest.raises(ConfigurationError, match="every measure once but got one GradientCosine twice"):
        small_module(measures=[cosine, cosine])
    with pytest.raises(ConfigurationError, match="a list of Value as measures of HeteroFL but got ClipDelta in it"):
        small_module(measures=[ClipDelta(1.0)])
