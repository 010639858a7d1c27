"""The processes of a comparison and their display, with small programs in place of training runs."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hetfl.compare.main import run_comparison
from hetfl.compare.plan import Action, PlannedRun
from hetfl.compare.processes import command, only_one, run_all
from hetfl.display.runs import RunLine, RunsProgress, in_view, seconds_left
from hetfl.files import write_whole

TEXT = "seed_everything: 0\ntrainer: {max_epochs: 3}\nfinal_test: true\n"
WORKS = """
import sys
open(sys.argv[1] + "/metrics.csv", "w").write("step,val/accuracy,test/accuracy\\n0,0.5,\\n1,0.6,\\n2,0.7,0.75\\n")
"""
UNTESTED = WORKS.replace("0.75", "nan")
FAILS = "import sys; print('hetfl: error: Expected much but got little', file=sys.stderr); print('bye'); sys.exit(2)"
DIES = "import os; os.kill(os.getpid(), 9)"
SAYS_NOTHING = "raise SystemExit(3)"
IS_EMPTY = "pass"
WAITS = """
import signal, sys, time
metrics = open(sys.argv[1] + "/metrics.csv", "w")
print("step,val/accuracy,test/accuracy\\n0,0.5,", file=metrics, flush=True)
signal.signal(signal.SIGINT, lambda *_: sys.exit(130) if len(sys.argv) < 3 else None)
while True:
    time.sleep(0.01)
"""

Runs = Callable[..., tuple[list[PlannedRun], list[RunLine]]]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Return a function that plans runs which execute given programs, by name."""
    programs: dict[str, str] = {}

    def start(run: PlannedRun, action: Action) -> list[str]:
        return [sys.executable, "-S", "-c", programs[run.name], str(run.folder)]

    def make(**given: str) -> tuple[list[PlannedRun], list[RunLine]]:
        programs.update(given)
        planned = [PlannedRun(name, 0, tmp_path / "runs" / name / "seed_0", TEXT) for name in given]
        return planned, [RunLine(run.name, 0, 3) for run in planned]

    monkeypatch.setattr("hetfl.compare.processes.command", start)
    return make


def plain(lines: list[RunLine]) -> tuple[RunsProgress, io.StringIO]:
    screen = io.StringIO()
    return RunsProgress(lines, console=Console(file=screen, width=60)), screen


def test_a_failing_run_is_reported_in_one_line_and_others_continue(runs: Runs, tmp_path: Path) -> None:
    planned, lines = runs(one=FAILS, two=WORKS, three=DIES, four=SAYS_NOTHING, five=IS_EMPTY, six=UNTESTED)
    progress, screen = plain(lines)
    with only_one(tmp_path) as lock, progress:
        assert run_all(planned, lines, progress, lock=lock) is None
    assert [line.state for line in lines] == ["failed", "done", "failed", "failed", "failed", "done"]
    text = screen.getvalue().splitlines()
    log = str(tmp_path / "runs" / "{}" / "seed_0.log")
    for name, reason in (
        ("one", "Expected much but got little"),
        ("three", "ended by SIGKILL"),
        ("four", "no output"),
        ("five", "no round in its metrics.csv"),
    ):
        (line,) = [line for line in text if line.startswith(f"{name} seed 0: failed")]
        assert line.endswith(f": {reason} ({log.format(name)})")
    (line,) = [line for line in text if line.startswith("two seed 0: done in ")]
    assert line.endswith(" s, test accuracy 75.0 %")
    (line,) = [line for line in text if line.startswith("six seed 0: done in ")]
    assert line.endswith(" s, validation accuracy 70.0 %")
    assert "bye" in (tmp_path / "runs/one/seed_0.log").read_text()
    assert [run.mark.is_file() for run in planned] == [False, True, False, False, False, True]


def test_a_full_disk_ends_no_other_run(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, lines = runs(one=WORKS, two=WORKS, three=WORKS)
    progress, screen = plain(lines)
    full = (planned[0].mark, planned[1].folder / "config.yaml")

    def write(path: Path, data: bytes) -> None:
        if path in full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, data)

    monkeypatch.setattr("hetfl.compare.processes.write_whole", write)
    with only_one(tmp_path) as lock, progress:
        assert run_all(planned, lines, progress, lock=lock, jobs=3) is None
    assert [line.state for line in lines] == ["done", "failed", "done"]
    text = screen.getvalue().splitlines()
    assert f"{full[0]} not written (No space left on device)" in text
    (line,) = [line for line in text if line.startswith("two seed 0: failed")]
    assert line.endswith(f": No space left on device ({full[1]})")


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        (
            {"one": FAILS, "two": WORKS},
            "hetfl: error: 1 of 2 runs failed and are not in the report; no run of one is finished\n",
        ),
        ({"one": FAILS, "two": DIES}, "hetfl: error: no report: no run is finished\n"),
    ],
)
def test_finished_runs_are_reported_and_missing_runs_are_listed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: dict[str, str], message: str
) -> None:
    planned, _ = runs(**programs)
    with only_one(tmp_path) as lock, pytest.raises(SystemExit) as stop:
        run_comparison(planned, tmp_path, lock=lock, jobs=1, mixed_data=False)
    assert stop.value.code == 1
    assert capsys.readouterr().err == message
    report = tmp_path / "report.md"
    assert report.is_file() == (WORKS in programs.values())
    if report.is_file():
        assert "# Report: two\n" in report.read_text()


def test_finished_runs_are_not_started(runs: Runs, tmp_path: Path) -> None:
    planned, lines = runs(one=WORKS)
    for _ in range(2):
        progress, screen = plain(lines)
        with only_one(tmp_path) as lock, progress:
            run_all(planned, lines, progress, lock=lock)
    assert screen.getvalue() == ""


def interrupt(times: int, when: Path) -> threading.Thread:
    """Send this process SIGINT ``times`` times after a file exists."""

    def send() -> None:
        while not when.is_file() or b"0.5" not in when.read_bytes():
            time.sleep(0.01)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(("program", "times"), [(WAITS, 1), (WAITS.replace("< 3", "< 0"), 3)])
def test_ctrl_c_ends_the_running_run_and_starts_no_other(runs: Runs, tmp_path: Path, program: str, times: int) -> None:
    planned, lines = runs(one=program, two=WORKS)
    progress, screen = plain(lines)
    thread = interrupt(times, planned[0].folder / "metrics.csv")
    with only_one(tmp_path) as lock, progress:
        assert run_all(planned, lines, progress, lock=lock) == signal.SIGINT
    thread.join()
    assert [line.state for line in lines] == ["stopped", "waiting"]
    assert not planned[1].folder.exists()
    assert "once more Ctrl-C stops at once" in screen.getvalue()
    assert "one seed 0: stopped after" in screen.getvalue()
    assert "1 of 3 rounds done" in screen.getvalue()


def test_a_run_is_resumed_from_its_checkpoint_in_its_folder() -> None:
    run = PlannedRun("width", 3, Path("out/runs/width/seed_3"), TEXT)
    fit = ["fit", "-c", "out/runs/width/seed_3/config.yaml"]
    on = ["--ckpt_path", "out/runs/width/seed_3/checkpoints/last.ckpt"]
    assert command(run, Action.BEGIN)[5:] == command(run, Action.ANEW)[5:] == fit
    assert command(run, Action.RESUME)[5:] == [*fit, *on]
    assert command(run, Action.TEST)[5:] == ["test", *fit[1:], *on]


@given(st.lists(st.sampled_from(["done", "running", "waiting", "failed"]), min_size=1), st.integers(3, 12))
def test_running_runs_are_visible(states: list[str], height: int) -> None:
    lines = [RunLine("a", seed, 3, state=state) for seed, state in enumerate(states)]  # type: ignore[arg-type]
    shown = in_view(lines, height)
    assert len(shown) == min(height, len(lines))
    first = next((line for line in lines if line.state in ("running", "waiting")), lines[-1])
    assert first in shown


def test_the_remaining_time_uses_the_speed_of_each_run() -> None:
    over = RunLine("a", 0, 10, done=10, state="done", seconds=20.0)  # 2 s a round
    under_way = RunLine("b", 0, 10, done=6, first=5, state="running", began=100.0)  # 4 s a round at 104
    same, new = RunLine("a", 1, 10), RunLine("c", 0, 10)
    assert seconds_left([same], 104.0) is None
    assert seconds_left([over, same], 104.0) == 20.0
    assert seconds_left([over, under_way], 104.0) == 4 * 4.0
    assert seconds_left([over, under_way, same, new], 104.0) == 16.0 + 20.0 + 10 * 3.0
    assert seconds_left([over, under_way, same, new], 104.0, jobs=2) == 33.0


def test_a_terminal_shows_a_line_per_run() -> None:
    now = [0.0]
    lines = [
        RunLine("width", 0, 10, done=10, score=0.9721, state="done", seconds=52.0),
        RunLine("depth", 0, 10, done=2, score=0.5),
        RunLine("depth", 1, 10),
    ]
    screen = io.StringIO()
    console = Console(
        file=screen, width=90, height=20, force_terminal=True, color_system=None, _environ={"TERM": "xterm"}
    )
    progress = RunsProgress(lines, console=console, clock=lambda: now[0])
    with progress:
        progress.begin(lines[1])
        now[0], lines[1].done = 9.0, 5
        drawn = io.StringIO()
        Console(file=drawn, width=90).print(progress.render())
        progress.end(lines[1], "failed", "no reason")
    table = [line.split() for line in drawn.getvalue().splitlines()]
    assert table[0] == ["run", "round", "accuracy", "time", "left"]
    assert [word for word in table[1] if "━" not in word] == ["width", "seed", "0", "10/10", "97.2", "%", "52", "s"]
    assert [word for word in table[2] if "━" not in word and word not in "╸╺"] == (
        ["depth", "seed", "0", "5/10", "50.0", "%", "9.0", "s", "15", "s"]
    )
    assert [word for word in table[3] if "━" not in word] == ["depth", "seed", "1", "0/10"]
    assert table[4][:6] == ["1", "of", "3", "runs", "done", "elapsed"]
    assert "depth seed 0: failed after 9.0 s: no reason" in screen.getvalue()
