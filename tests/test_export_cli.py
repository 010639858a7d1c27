"""``hetfl export``: from a run folder to files, with one line of output each."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

import hetfl
from hetfl.cli import main
from hetfl.cli.app import FederatedTrainer
from hetfl.data import Digits
from tests.demo_cases import DEMO, refused
from tests.test_cli import SMALL


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small run of the demo, tested at its end."""
    root = tmp_path_factory.mktemp("run")
    main(["fit", *DEMO, *SMALL, "--plots=false", f"--trainer.logger.root={root}"])
    (folder,) = (root / "demo").iterdir()
    return folder


def test_exported_levels_of_a_run_have_its_test_accuracy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(run / "metrics.csv")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    data = Digits()
    data.setup()
    test, transform = data.resident.all_test, data.transform
    for level in "ce":
        capsys.readouterr()
        main(["export", str(run), "--level", level])
        shown = capsys.readouterr()
        path = run / "export" / f"{level}.safetensors"
        accuracy = table[f"test/accuracy_by_level/{level}"].iloc[-1]
        assert shown.out.startswith(f"exported          {path} (level {level}, ")
        assert shown.out.endswith(f", test accuracy {accuracy:.2%}".replace("%", " %") + ")\n")
        assert shown.err == ""
        with torch.no_grad():
            predicted = hetfl.load(path)(transform.eval(test.inputs)).argmax(1)
        assert (predicted == test.targets).float().mean().item() == pytest.approx(accuracy, abs=1e-6)
        assert json.loads(path.with_name(f"{path.name}.json").read_text())["score"]["test/accuracy"] == accuracy
    assert {path: path.read_bytes() for path in before} == before
    assert not list(Path().iterdir())
    card = json.loads((run / "export/c.safetensors.json").read_text())
    arguments = {"in_channels": 1, "num_classes": 10, "hidden": [8, 8], "norm": "static_batch", "width": 0.25}
    assert card["net"] == {"class": "hetfl.models.ConvNet", "arguments": arguments}
    assert (card["rounds"], card["score"]["samples"]) == (2, 360)


def test_of_several_ranks_one_writes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FederatedTrainer, "is_global_zero", False)
    capsys.readouterr()
    main(["export", str(run), "--level", "d", "--out", "d.safetensors"])
    assert "exported" not in capsys.readouterr().out
    assert not Path("d.safetensors").exists()


def test_export_prints_one_line_and_hides_the_exporters_output(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    main(["export", str(run), "--out", "small.onnx", "--level=e"])
    shown = capfd.readouterr()
    assert shown.err == ""
    assert shown.out.startswith("exported          small.onnx (level e, 44 parameters, ")
    assert shown.out.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"small.onnx", "small.onnx.json"}


def test_out_is_a_file_or_a_folder_and_the_default_is_the_largest_level(run: Path) -> None:
    checkpoint = str(run / "checkpoints/last.ckpt")
    main(["export", "-c", str(run / "config.yaml"), "--ckpt_path", checkpoint, "--out=new/place", "--level=null"])
    main(["export", str(run), "--level=b", "--out=new/small.onnx"])
    names = {path.relative_to("new").as_posix() for path in Path("new").rglob("*.*")}
    files = {"place/a.safetensors", "small.onnx"}
    assert names == files | {f"{name}.json" for name in files}
    assert not (run / "export" / "a.safetensors").exists()


WRONG = {
    "no run": ([], "a run folder with a config.yaml after export but got nothing"),
    "not a run": (["nowhere"], "a run folder with a config.yaml after export but got nowhere"),
    "no checkpoint": (["bare"], "bare/checkpoints/last.ckpt, which does not exist"),
    "no checkpoint named": (["-c", "bare/config.yaml"], "Expected --ckpt_path"),
    "unknown level": (["RUN", "--level=z"], "level in ['a', 'b', 'c', 'd', 'e'] but got 'z'"),
    "unknown format": (["RUN", "--format=h5"], "Expected a file ending in .safetensors, .onnx but got "),
    "level twice": (["RUN", "--level=a", "--level", "b"], "--level once but got it 2 times"),
    "former format": (["RUN", "--format=pt2"], ".onnx (the prediction) or .safetensors (the net) but got "),
    "another suffix": (
        ["RUN", "--format=safetensors", "--out=x.onnx"],
        "--out to end in .safetensors, as --format s",
    ),
    "no format": (["RUN", "--out=x.txt"], "Expected a file ending in .safetensors, .onnx but got x.txt"),
    "nowhere": (["RUN", "--out="], "Expected --out to be a file or a folder but got ''"),
    "below a file": (["RUN", "--out=file/x.onnx"], "file is a file"),
    "abbreviation": (["RUN", "--lev=a"], "--lev"),
}


SLOW = {"nowhere", "another suffix", "below a file"}
"""The cases of ``--out`` that are not tried by default."""


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in WRONG])
def test_wrong_arguments_are_reported_in_one_line(case: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args, expected = WRONG[case]
    Path("file").touch()
    Path("bare").mkdir()
    Path("bare/config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert expected in refused(capsys, ["export", *(str(run) if arg == "RUN" else arg for arg in args)])


def test_a_full_disk_is_reported_in_one_line_with_status_1(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hetfl.files.os.fsync", full)
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--out=there"])
    assert stop.value.code == 1
    assert capsys.readouterr().err == "hetfl: error: there/a.safetensors: No space left on device\n"
    assert not list(Path("there").iterdir())
