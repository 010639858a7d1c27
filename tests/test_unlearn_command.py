"""``hetfl unlearn``: a new run folder without a class; the finished run stays as it is; wrong values in one line."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from hetfl.cli import main
from hetfl.runs.checkpoint import SafeCheckpointIO
from tests.demo_cases import DEMO, FEW, UNTESTED, refused

OUT = 3
NET = ["--model.net.hidden=[8,16]", "--model.levels={a: {width: 1.0}, b: {width: 0.5}}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that has learned the digits."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("run")
    rounds = ["--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=4"]
    rounds += ["--model.selection.clients_per_round=10", "--model.local.epochs=5", "--model.local.batch_size=10"]
    dense = ["--model.uplink.compressor=hetfl.compression.Identity", "--model.downlink=null"]
    main(["fit", *DEMO, *FEW, *NET, *rounds, *dense, *UNTESTED, f"--trainer.logger.root={root}"])
    (folder,) = (root / "demo").iterdir()
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def accuracies(folder: Path, column: str) -> tuple[float, float]:
    """Return the accuracy of level a on the class that is left out, and on all others, from ``unlearning.csv``."""
    table = csv.DictReader((folder / "unlearning.csv").read_text().splitlines())
    rows = [row for row in table if row["level"] == "a"]
    samples = [float(row["samples"]) for row in rows]
    hits = [float(row[column]) * count for row, count in zip(rows, samples, strict=True)]
    mine, count = hits.pop(OUT), samples.pop(OUT)
    return mine / count, sum(hits) / sum(samples)


def test_a_class_is_unlearned_in_a_new_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    main(["unlearn", str(run), "--class", str(OUT), "--rounds", "3", "--share", "0.15", "--name", "less"])
    (folder,) = (run.parent.parent / "less").iterdir()
    assert contents(run) == before
    assert len(pd.read_csv(folder / "metrics.csv")) == 3

    settings, old = (yaml.safe_load((each / "config.yaml").read_text()) for each in (folder, run))
    assert settings["data"]["init_args"]["left_out_classes"] == [OUT]
    parts = settings["model"]["init_args"]["parts"]["init_args"]
    assert parts["rule"] == old["model"]["init_args"]["parts"]
    assert [(group["size"], len(group["channels"])) for group in parts["groups"]] == [(8, 1), (16, 2)]
    weights = SafeCheckpointIO().load_checkpoint(str(folder / "checkpoints/last.ckpt"))["state_dict"]
    for group in parts["groups"]:
        for name, dims in group["tensors"].items():
            for dim in dims:
                assert not weights[f"models.0.{name}"].index_select(dim, torch.tensor(group["channels"])).any()

    (was, others_were), (now, others_now) = accuracies(folder, "before"), accuracies(folder, "after")
    assert was > 0.5
    assert now <= 0.1
    assert others_now > others_were - 0.05
    shown = capsys.readouterr().out
    assert f"class {OUT}: {100 * was:.2f} % before, {100 * now:.2f} % after (chance 10.00 %)" in shown
    assert f"other classes: {100 * others_were:.2f} % before, {100 * others_now:.2f} % after" in shown
    assert "3 of 24 channels in 2 groups" in shown


def test_the_first_round_has_the_cost_of_asking_all_clients(run: Path) -> None:
    main(["unlearn", str(run), "--class", str(OUT), "--rounds", "1", "--name", "costs"])
    (folder,) = (run.parent.parent / "costs").iterdir()
    row = pd.read_csv(folder / "metrics.csv").iloc[0]
    entries = pd.read_csv(run / "levels.csv").set_index("level")["parameters"]
    asked = float(row["comm/down_bytes_total"] - row["comm/down_bytes"])
    assert 40 * int(entries["b"]) <= asked <= 1.1 * 40 * int(entries["a"])


def test_the_new_run_is_resumed_and_unlearns_another_class(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["unlearn", str(run), "--class", str(OUT), "--rounds", "1", "--name", "first"])
    (folder,) = (run.parent.parent / "first").iterdir()
    main(["resume", str(folder)])
    assert "nothing is missing" in capsys.readouterr().out
    main(["resume", str(folder), "--trainer.max_epochs=2"])
    assert len(pd.read_csv(folder / "metrics.csv")) == 2
    main(["unlearn", str(folder), "--class", "5", "--rounds", "1", "--name", "second"])
    (again,) = (run.parent.parent / "second").iterdir()
    settings = yaml.safe_load((again / "config.yaml").read_text())
    assert settings["data"]["init_args"]["left_out_classes"] == [OUT, 5]
    assert settings["model"]["init_args"]["parts"]["init_args"]["rule"]["class_path"] == "hetfl.parts.PrunedChannels"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Expected --class, the number of the class to unlearn, but got none"),
        (["--class", "10"], "Expected --class from 0 to 9 but got 10"),
        (["--class", "-1"], "Expected --class from 0 to 9 but got -1"),
        (["--class", "3", "--share", "1"], "Expected --share in (0, 1) but got 1"),
        (["--class", "3", "--share", "0.01"], "Expected a share of at least half a channel but got 0.01 of groups of"),
        (["--class", "3", "--rounds", "0"], "Expected --rounds of at least 1 but got 0"),
        (["--class", "3", "--name", "a/b"], "Expected the run's name to be the name of one folder but got 'a/b'"),
    ],
)
def test_wrong_values_are_refused(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    runs = sorted(run.parent.parent.rglob("config.yaml"))
    assert message in refused(capsys, ["unlearn", str(run), *options])
    assert sorted(run.parent.parent.rglob("config.yaml")) == runs


def test_runs_that_cannot_unlearn_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--class", "3"]
    assert "with a config.yaml after unlearn but got" in refused(capsys, ["unlearn", str(tmp_path / "none"), *asked])
    other = Path(shutil.copytree(run, tmp_path / "other"))
    checkpoint, io = other / "checkpoints/last.ckpt", SafeCheckpointIO()
    state = io.load_checkpoint(str(checkpoint))
    settings = yaml.safe_load((other / "config.yaml").read_text())
    longer = {**settings, "trainer": {**settings["trainer"], "max_epochs": 20}}
    (other / "config.yaml").write_text(yaml.safe_dump(longer))
    unfinished = f"Expected a finished run but got 4 of 20 rounds in {other}: hetfl resume it"
    assert unfinished in refused(capsys, ["unlearn", str(other), *asked])
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    pieces = {**state["hetfl"]["pieces"], "clients": {"federation": "x"}}
    io.save_checkpoint({**state, "hetfl": {**state["hetfl"], "pieces": pieces}}, checkpoint)
    assert f"but got one on Flower in {other}" in refused(capsys, ["unlearn", str(other), *asked])
    io.save_checkpoint({**state, "hetfl": {**state["hetfl"], "models": 2}}, checkpoint)
    assert "Expected a run with one global model to unlearn a class but got 2" in refused(
        capsys, ["unlearn", str(other), *asked]
    )
    for old in checkpoint.parent.iterdir():
        old.unlink()
    assert "which does not exist" in refused(capsys, ["unlearn", str(other), *asked])


def test_a_regression_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--trainer.max_epochs=1", *UNTESTED, f"--trainer.logger.root={tmp_path}"]
    main(["fit", "-c", "experiment/regression_diabetes", *small])
    (folder,) = (path.parent for path in tmp_path.rglob("config.yaml"))
    error = refused(capsys, ["unlearn", str(folder), "--class", "0"])
    assert "Expected a run with one class per sample to unlearn a class but got Regression" in error
