"""``hetfl compare`` on the command line: refused arguments, output, and equal numbers after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from hetfl.cli import main
from hetfl.cli.starting import start
from hetfl.compare.main import plan
from hetfl.compare.one_run import RunInFolder
from hetfl.compare.plan import Action, PlannedRun, next_action, parse_contenders
from hetfl.compare.processes import command, only_one, prepare
from hetfl.data import Digits
from hetfl.data.arrays import Arrays
from hetfl.errors import ConfigurationError
from tests.demo_cases import FEW, ROOT, refused

WIDTH, DEPTH = (str(ROOT / f"configs/experiment/compare_digits_{side}.yaml") for side in ("width", "depth"))
BOTH = ["-r", f"width={WIDTH}", "-r", f"depth={DEPTH}"]
SETTINGS = ["--trainer.max_epochs=2", "--model.net.hidden=[4,4,8]", "--plots=false"]
TINY = [*FEW, *SETTINGS]
COMPARE = "from hetfl.cli import main; main()"


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def compare(*args: str) -> list[str]:
    return ["compare", *BOTH, *TINY, "--out", "out", *args]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["compare", *BOTH], "Expected --out DIR"),
        (["compare", "--out", "out"], "Expected at least one -r"),
        (["compare", *BOTH, "--out"], "argument --out: expected one argument"),
        (compare("--seeds"), "argument --seeds"),
        (compare("--seeds", "0", "1", "0"), "Expected every seed once in --seeds but got 0 twice"),
        (compare("--seeds", "one"), "in --seeds but got 'one'"),
        (compare("--jobs", "0"), "in --jobs but got '0'"),
        (compare("--seed_everything=3"), "Expected no --seed_everything in compare but got one: use --seeds"),
        (compare("--ckpt_path", "x"), "Expected no --ckpt_path in compare"),
        (["compare", "configs/b.yaml", *BOTH, "--out", "out"], "Expected --KEY VALUE or another option"),
        (["compare", "-r", f"width={WIDTH}", "--out", WIDTH], "compare_digits_width.yaml is a file"),
        (compare("--model.local.epoch=3"), "run width: "),
        (compare("--model.ramp_rounds=3"), "run width: "),  # only DepthFL has this setting
        (compare("--trainer.max_epochs=-1"), "run width: Expected trainer.max_epochs, the number of rounds, of at"),
        (compare("--trainer.fast_dev_run=true"), "run width: Expected neither trainer.fast_dev_run"),
        (
            compare("--trainer.check_val_every_n_epoch=3"),
            "run width: Expected trainer.check_val_every_n_epoch of at most",
        ),
        (compare("--trainer.limit_val_batches=0"), "run width: Expected trainer.limit_val_batches above 0 but got 0"),
        (
            compare("--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=3"),
            "run width: Expected trainer.val_check_interval of at most 2 rounds but got 3",
        ),
        (compare("--trainer.logger=false"), "run width: Expected one hetfl.runs.RunFolder"),
        (compare("--model.levels={a: {width: 1.0, depth: 7}}"), "run width: "),  # detected when the net is built
    ],
)
def test_errors_are_reported_before_any_run_starts(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, args)
    assert not Path("out").exists()


def test_a_wrong_key_in_the_last_file_is_reported_before_any_run_starts(capsys: pytest.CaptureFixture[str]) -> None:
    Path("last.yaml").write_text("model: {init_args: {local: {epoch: 3}}}\n")
    other = ["-r", f"width={WIDTH}", "-r", f"other={WIDTH},last.yaml", *TINY, "--out", "out"]
    error = refused(capsys, ["compare", *other])
    assert "run other: " in error
    assert "epoch" in error
    Path("last.yaml").write_text("data: {class_path: hetfl.data.MNIST, init_args: {root: nowhere}}\n")
    assert "run other: " in refused(capsys, ["compare", *other, "--mixed_data"])  # its files are missing
    Path("last.yaml").write_text("data: {init_args: {num_clients: 12}}\n")
    args = ["compare", "-r", f"width={WIDTH}", "-r", f"other={WIDTH},last.yaml", "--out", "out"]
    assert "got data.num_clients 50 in width and 12 in other: allow it with --mixed_data" in refused(capsys, args)
    assert not Path("out").exists()


def test_data_of_the_same_settings_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int | None] = []
    load = Digits.load

    def counted(self: Digits) -> Arrays:
        loads.append(self._num_clients)
        return load(self)

    monkeypatch.setattr(Digits, "load", counted)
    (tmp_path / "few.yaml").write_text("data: {init_args: {num_clients: 12}}\n")
    main(["compare", *BOTH, "-r", f"few={WIDTH},few.yaml", *SETTINGS, "--out", "out", "--mixed_data", "--dry_run"])
    assert loads == [50, 12]  # of three runs


def test_a_dry_run_prints_the_plan_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(compare("--seeds", "0", "7", "--dry_run"))
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines() if line.startswith(("width", "depth"))] == [
        [name, seed, "0/2", "start"] for name in ("width", "depth") for seed in ("0", "7")
    ]
    assert not Path("out").exists()


def test_a_second_comparison_in_the_same_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hetfl.compare.processes.PATIENCE_SECONDS", 0.4)
    with (
        only_one(Path("out")),
        pytest.raises(ConfigurationError, match="one comparison at a time in out"),
        only_one(Path("out")),
    ):
        pass  # pragma: no cover
    with only_one(Path("out")):
        pass


def do(run: PlannedRun, action: Action = Action.BEGIN) -> None:
    """Do in this process what the subprocess of a run does."""
    prepare(run, action)
    verb = command(run, action)[5:]
    start(verb, cli=partial(RunInFolder, folder=run.folder))


def undisturbed(root: Path, settings: list[str]) -> list[PlannedRun]:
    """Do what the processes of a comparison do, without interruption."""
    runs = plan(parse_contenders(BOTH[1::2]), [0, 1], settings, root)
    for run in runs:
        do(run)
    return runs


@pytest.mark.slow
def test_a_run_killed_before_its_test_is_tested_and_has_the_same_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The last round is not validated, so the test gathers its own statistics.
    settings = [*TINY[:-1], "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2"]
    whole, killed = (plan(parse_contenders(BOTH[3:]), [0], settings, Path(root))[0] for root in ("whole", "killed"))
    do(whole)
    with monkeypatch.context() as patch:
        patch.setattr(RunInFolder, "after_fit", lambda self: None)
        do(killed)
    assert next_action(killed) is Action.TEST
    do(killed, Action.TEST)
    assert next_action(killed) is Action.SKIP
    assert (killed.folder / "metrics.csv").read_bytes() == (whole.folder / "metrics.csv").read_bytes()
    names = [sorted(path.relative_to(run.folder) for path in run.folder.rglob("*")) for run in (whole, killed)]
    assert names[0] == names[1]


KILLER = """
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class KillOnce(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
"""
"""Kills the comparison and its run once, at the end of the second round and before its checkpoint."""


@pytest.mark.slow
def test_a_killed_comparison_resumes_to_the_same_numbers_without_repeating_runs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("killer.py").write_text(KILLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = [*TINY, "--trainer.callbacks+=killer.KillOnce"]
    process = subprocess.run(
        [sys.executable, "-c", COMPARE, "compare", *BOTH, *settings, "--out", "out", "--seeds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stdout.decode()
    assert Path("killed").exists()
    assert not Path("out/report.html").exists()
    reference = undisturbed(Path("whole"), settings)

    args = ["compare", *BOTH, *settings, "--out", "out", "--seeds", "0", "1", "--jobs", "2"]
    capfd.readouterr()
    main(args)
    output = capfd.readouterr().out
    for run in reference:
        folder = Path("out/runs", run.name, f"seed_{run.seed}")
        assert (folder / "metrics.csv").read_bytes() == (run.folder / "metrics.csv").read_bytes(), run.title
        assert (folder / "config.yaml").read_bytes() == (run.folder / "config.yaml").read_bytes(), run.title
        accuracy = pd.read_csv(folder / "metrics.csv")["test/accuracy"].iloc[-1]
        assert f"{run.title}: done in" in output
        assert f"test accuracy {100 * accuracy:.1f} %" in output
    assert "out/report.html" in output
    assert Path("out/report.html").is_file()

    before = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*") if path.is_file()}
    main(args)
    assert "4 of 4 runs finished before" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit):
        main([*args, "--model.local.epochs=2"])
    assert "Expected model.local.epochs 1, as in out/runs/width/seed_0, but" in capfd.readouterr().err
