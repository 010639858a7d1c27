"""``hetfl report --watch``: a page per round until the run has ended, which loads nothing and escapes names."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetfl.runs.headline import ACCURACY
from hetfl.runs.metrics_file import MetricsFile
from hetfl.runs.run_folder import note_end
from hetfl.session.watching import PAGE, watch
from tests.demo_cases import refused
from tests.headline_cases import write_run


def test_the_page_follows_the_run_until_it_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "<b>" / "run", ACCURACY, [0.25, 0.5], step=0.1, clients=[0.5])
    whole = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").unlink()
    pages: list[str] = []

    def sleep(seconds: float) -> None:
        pages.append((folder / PAGE).read_text())
        if len(pages) == 1:  # a run declares its columns before its first round ends
            (folder / "metrics.csv").write_text(whole.splitlines(keepends=True)[0])
        elif len(pages) == 2:
            (folder / "metrics.csv").write_text("".join(whole.splitlines(keepends=True)[:2]))
        elif len(pages) == 3:
            (folder / "metrics.csv").write_text(whole)
            MetricsFile(folder / "metrics.csv").add(1, {"test/accuracy_by_level/b": 0.375})

    watch(folder, sleep=sleep)
    assert "No round is done yet." in pages[0]
    assert pages[1] == pages[0]
    assert "The run trains. 1 of 2 rounds are done (50.0 %)." in pages[2]
    assert 'http-equiv="refresh"' in pages[2]
    assert "<td>25.00 %</td><td>–</td>" in pages[2]
    last = (folder / PAGE).read_text()
    assert "The run has ended. 2 of 2 rounds" in last
    assert "<td>37.50 %</td>" in last
    assert last.count("<svg") == 2
    assert "refresh" not in last
    assert "<title>Run &lt;b&gt;, run</title>" in last
    assert not [word for word in ("<script", "src=", "<link") if word in last]


def test_the_page_of_a_run_that_its_settings_ended_is_the_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ACCURACY, [0.25, 0.5], step=0.1)
    (folder / "config.yaml").write_text("final_test: false\ntrainer: {max_epochs: 9}\n")
    calls = []

    def sleep(seconds: float) -> None:
        calls.append(seconds)
        assert len(calls) < 3
        note_end(folder, 2, 9)  # after the last row

    watch(folder, sleep=sleep)
    assert len(calls) == 1
    assert "The run has ended. 2 of 9 rounds" in (folder / PAGE).read_text()


def test_a_run_that_goes_on_shows_no_test_of_the_model_before(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ACCURACY, [0.25, 0.5], step=0.125)
    MetricsFile(folder / "metrics.csv").add(2, {"val/accuracy": 0.75})
    (folder / "config.yaml").write_text("final_test: false\ntrainer: {max_epochs: 3}\n")
    watch(folder, sleep=lambda seconds: pytest.fail("it ended"))
    text = (folder / PAGE).read_text()
    assert "<td>75.00 %</td><td>–</td>" in text
    assert "<td>62.50 %</td><td>–</td>" in text


@pytest.mark.parametrize("options", [["--out", "x"], ["--target=0.5"], ["--unfinished"], ["--mixed_data"]])
def test_options_of_a_report_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"Expected only a run folder beside --watch but got {options[0].partition('=')[0]}"
    assert message in refused(capsys, ["report", "--watch", str(tmp_path), *options])


def test_one_run_folder_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], [str(tmp_path), str(tmp_path)], [str(tmp_path / "missing")]):
        assert "Expected one run folder to watch but got" in refused(capsys, ["report", "--watch", *args])


def test_a_link_in_a_strangers_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ACCURACY, [0.25, 0.5], step=0.1, clients=[0.5])
    own = tmp_path / "own"
    own.write_text("mine")
    (folder / f"{PAGE}.tmp").symlink_to(own)
    watch(folder, sleep=lambda _: None)
    assert own.read_text() == "mine"
    assert not (folder / PAGE).is_symlink()
    assert "The run has ended." in (folder / PAGE).read_text()
    assert not (folder / f"{PAGE}.tmp").exists()
