"""``hetfl report`` on the command line: accepted and refused arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hetfl.cli.reporting import main
from hetfl.errors import ConfigurationError
from hetfl.runs.run_folder import note_end
from tests.report_cases import settings, two_groups, write_run


def report(args: Sequence[str | Path]) -> None:
    main([str(argument) for argument in args])


def test_runs_on_the_command_line_are_grouped_by_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = two_groups(tmp_path, levels="a")
    report([*groups["low"], *groups["high"], "--out", tmp_path / "out"])
    low, high, _, verdict, *_, report_line = capsys.readouterr().out.splitlines()
    assert [low, high, verdict] == ["low: 2 runs", "high: 2 runs", "* high leads by 20.00 points at level a."]
    assert report_line == f"{'report':<18}{tmp_path}/out/report.html"
    report([f"x y={groups['low'][0]}", groups["high"][0], "--out", tmp_path / "out"])
    assert capsys.readouterr().out.splitlines()[:2] == ["x y: 1 run", "high: 1 run"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Expected run folders after report but got none"),
        (["high/0"], "Expected --out, the folder to write the report into, but got none"),
        (
            ["nowhere", "--out", "out"],
            "Expected a run folder with a metrics.csv but got no file '.*nowhere/metrics.csv'",
        ),
        (["=high/0", "--out", "out"], "Expected NAME=RUN but got =high/0"),
        (["high/0", "high/0", "--out", "out"], "Expected every run once but got high/0 again"),
        (["x=high/0", "y=high/0", "--out", "out"], "Expected every run once but got high/0 again"),
        (
            ["x=high/0", "x=low/1", "--out", "out"],
            "Expected runs of group x to differ only in their seed but got model.lr 0.1 in",
        ),
        (["x=high/0", "x=again/0", "--out", "out"], "Expected one run per seed in group x but got seed 0 in"),
        (["high/0", "--out", "out", "--target=0"], "Expected --target, an accuracy, above 0 and at most 1 but got 0"),
        (["high/0", "--out", "out", "--target=95"], "Expected --target, an accuracy, above 0 and at most 1 but got 95"),
        (
            ["high/0", "short/0", "--out", "out"],
            "Expected finished runs but got 3 of 8 rounds in short/0: hetfl resume it",
        ),
        (
            ["high/0", "other/0", "--out", "out"],
            "Expected runs on the same data but got data.num_clients 4 in high and 5 in",
        ),
        (["silent/0", "--out", "out"], "Expected a finite validation accuracy in silent/0/metrics.csv but got none"),
        (["high/0", "--out", "high/0/config.yaml"], "Expected a folder to write the report into but got .*config.yaml"),
        (["broken/0", "--out", "out"], "Expected a column 'parameters' in broken/0/levels.csv but got level, width"),
    ],
)
def test_impossible_reports_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    two_groups(tmp_path)
    write_run(tmp_path / "again/0")
    write_run(tmp_path / "short/0", rounds=3, config=settings(lr=0.7))
    other = settings()
    other["data"]["init_args"]["num_clients"] = 5
    write_run(tmp_path / "other/0", config=other)
    (tmp_path / "silent/0").mkdir(parents=True)
    (tmp_path / "silent/0/metrics.csv").write_text("step,train/loss\n0,1.0\n")
    (write_run(tmp_path / "broken/0") / "levels.csv").write_text("level,width,depth\na,1.0,\n")
    with pytest.raises(ConfigurationError, match=message) as caught:
        report(args)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unfinished_runs_and_mixed_data_are_accepted_on_request_and_noted(tmp_path: Path) -> None:
    other = settings()
    other["data"]["init_args"]["num_clients"] = 5
    runs = [write_run(tmp_path / "high/0"), write_run(tmp_path / "short/0", rounds=3, config=other)]
    report([*runs, "--out", tmp_path / "out", "--unfinished", "--mixed_data"])
    text = (tmp_path / "out/report.md").read_text()
    assert "Not finished: 0 of short has 3 of 8 rounds." in text
    rounds = "(high 8, short 3), and each run is evaluated after its last round."
    assert f"Runs have different numbers of rounds {rounds}" in text
    assert "Different data: data.num\\_clients is 4 in high and 5 in short" in text


def test_a_run_ended_early_by_its_settings_counts_as_finished(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "high/0"), write_run(tmp_path / "short/0", rounds=3, config=settings(lr=0.7))]
    note_end(runs[1], 3, 8)
    report([*runs, "--out", tmp_path / "out"])
    assert "Not finished" not in (tmp_path / "out/report.md").read_text()
    note_end(runs[1], 4, 8)  # it was resumed since
    with pytest.raises(ConfigurationError, match="Expected finished runs but got 3 of 8 rounds in"):
        report([*runs, "--out", tmp_path / "out"])


def test_a_wrong_option_is_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["runs/1", "--out", "x", "--targett=3"])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
