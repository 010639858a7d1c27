"""The command line: the files of a run, and resuming it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hetfl.cli import main
from hetfl.display.formats import format_quantity
from tests.demo_cases import CONFIGS, DEMO, FEW, ROOT, SHORT, UNTESTED, refused

CONTRACT = (
    "step,train/loss,val/loss,val/accuracy,val/accuracy_by_level/a,val/accuracy_by_level/b,test/loss,test/accuracy,"
    "test/accuracy_by_level/a,local/accuracy_mean,local/accuracy_worst10,local/accuracy_var,lr,threshold,"
    "comm/up_bytes,comm/down_bytes,comm/down_training_bytes,comm/down_statistics_bytes,comm/down_probes_bytes,comm/up_bytes_total,comm/down_bytes_total,comm/up_density,comm/up_ratio,comm/up_ratio_total,"
    "compute/flops_total,sim/round_seconds,sim/seconds_total,residual/norm"
)
SMALL = [*SHORT, "--model.net.hidden=[8,8]"]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hetfl(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a subprocess, as a user does."""
    command = [sys.executable, "-c", "from hetfl.cli import main; main()", *args]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # as in this process
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def demo(*args: str, verb: str = "fit") -> list[str]:
    return [verb, *DEMO, *SMALL, *args]


def test_fit_writes_the_contract_columns_and_each_run_has_its_own_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(demo())
    captured = capsys.readouterr()
    assert captured.err == ""
    (folder,) = Path("runs/demo").iterdir()
    assert str(folder) in captured.out
    table = pd.read_csv(folder / "metrics.csv")
    assert set(CONTRACT.split(",")) <= set(table.columns)
    assert table["step"].tolist() == [0, 1]
    for name in ("up", "down"):  # with the costs of the last validation
        assert format_quantity(table[f"comm/{name}_bytes_total"].iloc[-1], "B") in captured.out
    assert table["test/accuracy"].notna().tolist() == [False, True]
    assert (folder / "checkpoints/last.ckpt").stat().st_size > 1000
    assert {path.suffix for path in (folder / "plots").iterdir()} == {".png", ".svg"}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (
        saved["model"]["init_args"]["uplink"]["init_args"]["compressor"]["init_args"]["quantiser"]["init_args"]["bits"]
        == 4
    )

    # The saved configuration repeats the run in a new folder, and also resumes it.
    main(["fit", "-c", str(folder / "config.yaml"), "--final_test=false", "--plots=false"])
    (other,) = set(Path("runs/demo").iterdir()) - {folder}
    columns = [name for name in table.columns if not name.startswith("test/")]
    pd.testing.assert_frame_equal(pd.read_csv(other / "metrics.csv")[columns], table[columns], check_exact=True)

    checkpoint = str(folder / "checkpoints/last.ckpt")
    capsys.readouterr()
    main(["test", "-c", str(folder / "config.yaml"), "--ckpt_path", checkpoint])
    assert f"{table['test/accuracy'][1]:.2%}".replace("%", " %") in capsys.readouterr().out

    main(["fit", "-c", str(folder / "config.yaml"), "--ckpt_path", checkpoint, "--trainer.max_epochs=3", *UNTESTED])
    longer = pd.read_csv(folder / "metrics.csv")
    assert longer["step"].tolist() == [0, 1, 2]
    assert longer["train/loss"][:2].tolist() == table["train/loss"].tolist()


@pytest.mark.slow
def test_the_installed_command_writes_nothing_to_stderr() -> None:
    done = hetfl(*demo())
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (folder,) = Path("runs/demo").iterdir()
    assert str(folder) in done.stdout


def test_a_refused_command_prints_one_line() -> None:
    """Neither do libraries print what they could not free at the end of the process."""
    done = hetfl(*demo("--model.foo=1"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hetfl: error: model: Option 'foo' is not accepted\n"


def test_a_users_net_needs_no_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("nets.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Sequential):\n"
        "    def __init__(self, hidden: int = 16, width: float = 1.0):\n"
        "        channels = round(hidden * width)\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, channels), nn.ReLU(), nn.Linear(channels, 10))\n"
    )
    levels = "--model.levels={a: {width: 1.0}, b: {width: 0.5}}"
    main(["fit", *DEMO, "--model.net=nets.Mine", levels, "--plots=false", *FEW, "--trainer.max_epochs=1"])
    assert "test accuracy" in capsys.readouterr().out


def test_describe_prints_the_run_and_trains_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    main(demo(verb="describe"))
    output = capsys.readouterr().out
    for text in ("parameters", "0.0625", "FLOP", "Digits", "small nets in groups", "3 of 10 clients", "GammaFedHT"):
        assert text in output
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of one round."""
    root = tmp_path_factory.mktemp("finished")
    main(tiny(f"--trainer.logger.root={root}"))
    (folder,) = (root / "demo").iterdir()
    return folder


@pytest.fixture
def old(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run's folder."""
    return Path(shutil.copytree(finished, tmp_path / "old"))


def tiny(*args: str, verb: str = "fit") -> list[str]:
    return demo("--trainer.max_epochs=1", *UNTESTED, *args, verb=verb)


def new_runs() -> list[Path]:
    return [path.parent for path in Path("runs").rglob("metrics.csv")]


def test_a_failed_resume_does_not_change_the_configuration(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, rows = (old / "config.yaml").read_bytes(), (old / "metrics.csv").read_bytes()
    again = ["fit", "-c", str(old / "config.yaml"), "--ckpt_path", str(old / "checkpoints/last.ckpt")]
    assert "above the 1 rounds done but got 1" in refused(capsys, again)
    assert "the checkpoint's seed (0) but got 1" in refused(
        capsys, ["resume", str(old), "--trainer.max_epochs=2", "--seed_everything=1"]
    )
    (old / "checkpoints/last.ckpt").write_bytes(b"torn")
    assert "last.ckpt is damaged" in refused(capsys, ["resume", str(old), "--trainer.max_epochs=2"])
    assert (old / "config.yaml").read_bytes() == before
    assert (old / "metrics.csv").read_bytes() == rows
    assert not Path("runs").exists()


def test_the_configuration_of_a_resumed_run_starts_a_new_run(old: Path) -> None:
    loggers = (
        "[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: others}},"
        " {class_path: hetfl.run_folder.RunFolder, init_args: {root: runs, name: many}}]"
    )
    main(["resume", str(old), "--trainer.max_epochs=2", f"--trainer.logger={loggers}"])
    assert not Path("runs").exists()
    assert pd.read_csv(old / "metrics.csv")["step"].tolist() == [0, 1]
    saved = yaml.safe_load((old / "config.yaml").read_text())
    assert "ckpt_path" not in saved
    assert saved["final_test"] is False
    assert saved["trainer"]["max_epochs"] == 2
    assert saved["trainer"]["logger"][1]["init_args"].get("folder") is None
    main(["fit", "-c", str(old / "config.yaml"), "--trainer.max_epochs=1"])
    (folder,) = new_runs()
    assert folder.parent.name == "many"
    assert (folder / "config.yaml").is_file()
    assert (folder / "checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_an_evaluation_prints_its_summary_once_and_no_configuration(
    old: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    before = (old / "config.yaml").read_bytes()
    main([verb, "-c", str(old / "config.yaml"), "--ckpt_path", str(old / "checkpoints/last.ckpt")])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("global") == 1
    assert "DataLoader" not in captured.out
    assert (old / "config.yaml").read_bytes() == before
    assert not list(Path("runs").rglob("config.yaml"))


def test_describe_takes_the_configuration_of_fit(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["describe", "-c", str(old / "config.yaml")])
    assert "3 of 10 clients" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_null_on_the_command_line_overrides_yaml() -> None:
    main(tiny("--model.local.gradient_clip", "null", "--model.init_args.local.scheduler=null"))
    (folder,) = new_runs()
    local = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["local"]
    assert local["gradient_clip"] is None
    assert local["scheduler"] is None
    assert local["epochs"] == 1


def test_an_option_overrides_a_file_that_comes_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.selection.clients_per_round", "7", "--config", "base", "--trainer.max_epochs=16"]
    main(
        [
            "describe",
            *options,
            "-c",
            str(CONFIGS / "demo.yaml"),
            "--data.num_clients=21",
            "--config=partition/two_labels",
        ]
    )
    assert "7 of 21 clients" in capsys.readouterr().out


def test_base_method_and_data_files_are_enough_for_a_run() -> None:
    files = ["base.yaml", "method/heterofl.yaml", "data/digits.yaml"]
    stacked = [part for file in files for part in ("-c", str(CONFIGS / file))]
    main(["fit", *stacked, *tiny()[3:]])
    assert len(new_runs()) == 1


def test_a_users_checkpoint_callback_is_added_to_ours() -> None:
    callback = "{class_path: ModelCheckpoint, init_args: {monitor: val/accuracy, mode: max, filename: best}}"
    main(tiny(f"--trainer.callbacks=[{callback}]"))
    (folder,) = new_runs()
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_a_run_without_validation_succeeds_without_plots(capsys: pytest.CaptureFixture[str]) -> None:
    main(demo("--final_test=false", "--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"))
    (folder,) = Path("runs/demo").iterdir()
    assert len(pd.read_csv(folder / "metrics.csv")) == 2
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("pictures"))
    assert line == f"pictures          none: Expected a validation accuracy in {folder / 'metrics.csv'} but got none"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_stops_the_run_at_a_round_end_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, name: str
) -> None:
    Path("terminating.py").write_text(
        "import os\n"
        "from lightning.pytorch import Callback\n"
        "class Terminate(Callback):\n"
        "    def on_train_batch_start(self, *args: object) -> None:\n"
        f"        os.kill(os.getpid(), {number:d})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "terminating", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(tiny("--trainer.callbacks=terminating.Terminate", "--trainer.max_epochs=50"))
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == f"hetfl: stopping after this round; once more {name} stops at once\n"
    (folder,) = new_runs()
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [0]
    assert (folder / "checkpoints/last.ckpt").is_file()


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out.startswith("hetfl 0.")
