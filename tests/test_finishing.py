"""``hetfl resume`` makes the missing outputs of a run with all rounds done, and says if nothing is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from hetfl.analysis import load_run
from hetfl.cli import main
from hetfl.runs.checkpoint import SafeCheckpointIO
from hetfl.runs.run_folder import EARLY_END, ended_early
from hetfl.session.callbacks import has_ended
from tests.demo_cases import DEMO, FEW

STOP = {"class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/accuracy", "mode": "max", "stopping_threshold": 0.0}}  # fmt: skip
NOTHING = "nothing is missing: "


def fit(root: Path, *args: str) -> Path:
    """Run the demo for one or two rounds; return its folder."""
    small = [*FEW, "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"]
    main(["fit", *DEMO, *small, "--model.net.hidden=[8,8]", f"--trainer.logger.root={root}", *args])
    (folder,) = (root / "demo").iterdir()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    torch.set_num_threads(1)
    return fit(tmp_path_factory.mktemp("whole"))


def killed_before_its_test(whole: Path, folder: Path) -> Path:
    """Return a copy of a run's folder as a kill between the last checkpoint and the test leaves it."""
    shutil.copytree(whole, folder)
    (folder / "clients.csv").unlink()
    shutil.rmtree(folder / "plots", ignore_errors=True)
    table = pd.read_csv(folder / "metrics.csv", dtype=str)
    tested = [name for name in table.columns if name.startswith("test/")]
    assert table[tested].notna().any(axis=None)
    table.drop(columns=tested).to_csv(folder / "metrics.csv", index=False)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_killed_before_its_test_is_completed_to_the_same_bytes(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed_before_its_test(whole, tmp_path / "run")
    main(["resume", str(folder)])
    assert "test accuracy" in capsys.readouterr().out
    one, two = pd.read_csv(whole / "metrics.csv"), pd.read_csv(folder / "metrics.csv")
    # Columns local/* keep the values of the last evaluation, the test.
    pd.testing.assert_frame_equal(one, two[one.columns], check_exact=True)
    left, right = contents(whole), contents(folder)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name] and not name.startswith("plots")] == []
    main(["resume", str(folder)])
    assert capsys.readouterr().out.splitlines() == [f"{NOTHING}{folder} has all rounds, and the results of the end"]
    assert contents(folder) == right


def test_only_missing_outputs_are_made(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    (folder / "plots/accuracy_over_bytes.svg").unlink()
    main(["resume", str(folder), "--plots", "false"])
    assert capsys.readouterr().out.startswith(NOTHING)
    main(["resume", str(folder)])
    assert capsys.readouterr().out.startswith("pictures ")
    assert contents(folder).keys() == contents(whole).keys()
    newer = (folder / "plots/accuracy_over_bytes.svg").stat().st_mtime_ns + 10**9
    os.utime(folder / "metrics.csv", ns=(newer, newer))  # rounds that were added after the plots
    main(["resume", str(folder)])
    assert capsys.readouterr().out.startswith("pictures ")


def test_a_finished_run_with_changed_settings_continues_or_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    before = contents(folder)
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(folder), "--trainer.max_epochs=2"])
    assert stop.value.code == 2
    assert "above the 2 rounds done" in capsys.readouterr().err
    assert contents(folder) == before
    assert load_run(folder).clients is not None
    main(["resume", str(folder), "--trainer.max_epochs=3", "--final_test=false"])
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [0, 1, 2]
    assert load_run(folder).clients is None  # the table was that of the model of the second round


def test_missing_rows_are_reported(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-1]))
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(folder)])
    assert stop.value.code == 2
    assert "Expected 2 rounds in " in capsys.readouterr().err


def test_an_early_stopped_run_is_completed_without_another_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(
        tmp_path, f"--trainer.callbacks={yaml.safe_dump([STOP], default_flow_style=True).strip()}", "--plots=false"
    )
    rows = (folder / "metrics.csv").read_bytes()
    assert rows.count(b"\n") == 2
    other = killed_before_its_test(folder, tmp_path / "other")
    assert ended_early(folder, 1, 2)
    assert not ended_early(folder, 2, 2)
    assert not ended_early(folder, 1, 3)
    (other / EARLY_END).unlink()
    main(["resume", str(other), "--final_test=false", "--plots=false"])
    assert ended_early(other, 1, 2)
    assert not (other / "clients.csv").exists()
    main(["resume", str(other), "--plots=false"])
    assert pd.read_csv(other / "metrics.csv")["step"].tolist() == [0]
    assert (other / "clients.csv").read_bytes() == (folder / "clients.csv").read_bytes()
    checkpoint = SafeCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")
    assert [has_ended(checkpoint, rounds) for rounds in (0, 1, 2, 3, -1, None)] == [True, True, True, *[False] * 3]
    capsys.readouterr()
    main(["resume", str(folder), "--trainer.max_epochs=3", "--final_test=false", "--plots=false"])
    assert len(pd.read_csv(folder / "metrics.csv")) > 1
