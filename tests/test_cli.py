"""The command line: what it makes, and one line for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hetfl.cli import main

ROOT = Path(__file__).parent.parent
CONTRACT = (
    "step,train/loss,val/loss,val/accuracy,val/accuracy/a,val/accuracy/b,test/loss,test/accuracy,test/accuracy/a,"
    "local/accuracy_mean,local/accuracy_worst10,local/accuracy_var,lr,threshold,comm/up_bytes,comm/down_bytes,"
    "comm/up_bytes_total,comm/down_bytes_total,comm/up_density,comm/up_ratio,compute/flops_total,sim/round_seconds,"
    "sim/seconds_total,residual/norm"
)
SMALL = [
    "--trainer.max_epochs=2",
    "--model.net.hidden=[8,8]",
    "--model.local.epochs=1",
    "--model.selection.clients_per_round=3",
    "--data.num_clients=10",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hetfl(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-c", "from hetfl.cli import main; main()", *args]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    )


def demo(*args: str, verb: str = "fit") -> list[str]:
    return [verb, "-c", str(ROOT / "configs/demo.yaml"), *SMALL, *args]


def test_fit_makes_a_run_folder_with_the_contract_and_a_second_run_another() -> None:
    done = hetfl(*demo())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder,) = Path("runs/demo").iterdir()
    assert str(folder) in done.stdout
    table = pd.read_csv(folder / "metrics.csv")
    assert set(CONTRACT.split(",")) <= set(table.columns)
    assert table["step"].tolist() == [0, 1]
    assert table["test/accuracy"].notna().tolist() == [False, True]
    assert (folder / "checkpoints/last.ckpt").stat().st_size > 1000
    assert {path.suffix for path in (folder / "plots").iterdir()} == {".png", ".svg"}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["model"]["init_args"]["uplink"]["init_args"]["compressor"]["init_args"]["density"] == 0.05

    # The saved configuration is the run: the same numbers again, in a folder of its own; and go on where it ended.
    again = hetfl("fit", "-c", str(folder / "config.yaml"), "--final_test=false", "--plots=false")
    assert again.returncode == 0, again.stderr
    (other,) = set(Path("runs/demo").iterdir()) - {folder}
    columns = [name for name in table.columns if not name.startswith("test/")]
    pd.testing.assert_frame_equal(pd.read_csv(other / "metrics.csv")[columns], table[columns], check_exact=True)

    checkpoint = str(folder / "checkpoints/last.ckpt")
    tested = hetfl("test", "-c", str(folder / "config.yaml"), "--ckpt_path", checkpoint)
    assert tested.returncode == 0, tested.stderr
    assert f"{table['test/accuracy'][1]:.2%}".replace("%", " %") in tested.stdout

    resumed = hetfl("fit", "-c", str(folder / "config.yaml"), "--ckpt_path", checkpoint, "--trainer.max_epochs=3")
    assert resumed.returncode == 0, resumed.stderr
    longer = pd.read_csv(folder / "metrics.csv")
    assert longer["step"].tolist() == [0, 1, 2]
    assert longer["train/loss"][:2].tolist() == table["train/loss"].tolist()


def test_a_net_of_the_users_needs_no_registration() -> None:
    Path("nets.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Sequential):\n"
        "    def __init__(self, hidden: int = 16, width: float = 1.0):\n"
        "        channels = round(hidden * width)\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, channels), nn.ReLU(), nn.Linear(channels, 10))\n"
    )
    levels = "--model.levels={a: {width: 1.0}, b: {width: 0.5}}"
    own = [option for option in SMALL if "hidden" not in option]
    done = hetfl("fit", "-c", str(ROOT / "configs/demo.yaml"), "--model.net=nets.Mine", levels, "--plots=false", *own)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout


def test_describe_says_what_would_run_and_runs_nothing() -> None:
    done = hetfl(*demo(verb="describe"))
    assert done.returncode == 0, done.stderr
    for text in ("parameters", "0.0625", "MFLOP", "Digits", "Sequential", "3 of 10 clients", "GammaFedHT"):
        assert text in done.stdout
    assert not Path("runs").exists()


WRONG = {
    "unknown key": (["--model.nope=1"], "nope"),
    "unknown key in YAML": (["-c", "unknown.yaml"], "surprise"),
    "unknown class": (["--model.net=hetfl.models.Nope"], "Nope"),
    "wrong type": (["--trainer.max_epochs=many"], "many"),
    "width 0": (["--model.levels", "{a: {width: 1.0}, b: {width: 0.0}}"], "(0, 1] for level b but got 0.0"),
    "width above 1": (["--model.levels", "{a: {width: 1.0}, b: {width: 1.5}}"], "(0, 1] for level b but got 1.5"),
    "unknown level": (["--model.assignment.proportions", "{a: 1, z: 1}"], "'z'"),
    "cohort too large": (["--model.selection.clients_per_round=11"], "number of clients, 10, but got 11"),
    "no data": (["--data=hetfl.data.MNIST", "--data.root=nowhere"], "nowhere"),
    "precision": (["--trainer.precision=16-mixed"], "16-mixed"),
    "net without the axis": (["--model.net=torch.nn.Flatten"], "'width'"),
    "threshold and density": (["--model.uplink.compressor.threshold=0.1"], "threshold"),
    "no such config": (["-c", "missing.yaml"], "missing.yaml"),
    "no such checkpoint": (["--ckpt_path=missing.ckpt"], "missing.ckpt"),
    "seed": (["--seed_everything=true"], "seed_everything"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line_with_status_2(
    case: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    args, expected = WRONG[case]
    Path("unknown.yaml").write_text("trainer: {surprise: 1}\n")
    with pytest.raises(SystemExit) as stop:
        main(demo(*args))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert expected in error
    assert error.startswith("hetfl: error: ")
    assert error.count("\n") == 1
    assert len(error) < 400


def test_a_missing_verb_is_said_in_one_line() -> None:
    done = hetfl("fitt")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "fitt" in done.stderr
