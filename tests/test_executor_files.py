"""Every file in ``configs/executor`` makes a run, and wrong settings are reported in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from hetfl.cli import main
from tests.demo_cases import CONFIGS, DEMO, FEW, UNTESTED

FILES = sorted((CONFIGS / "executor").glob("*.yaml"))
LEVELS = '--model.levels={"a": {"width": 1.0}, "e": {"width": 0.0625}}'
SMALL = ["--trainer.max_epochs=1", LEVELS, "--model.net.hidden=[16,16]", *FEW, *UNTESTED]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_executor_file_runs(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["fit", *DEMO, "-c", str(file), *SMALL, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    settings = yaml.safe_load(file.read_text())["model"]["init_args"]["executor"]
    used = yaml.safe_load(metrics.with_name("config.yaml").read_text())["model"]["init_args"]["executor"]
    assert used["class_path"] == settings["class_path"]
    assert pd.read_csv(metrics)["train/loss"].between(0, 10).all()
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Executor for level")]
    assert [line.split(":")[0].split()[-1] for line in lines] == (["a", "e"] if file.stem == "auto" else [])


WRONG = [
    ({"class_path": "hetfl.local.Stacked", "init_args": {"clients": 0}}, [], "clients of at least 1"),
    ({"class_path": "hetfl.local.Auto", "init_args": {"num_workers": 0}}, [], "num_workers of at least 1"),
    ({"class_path": "hetfl.local.Stacked"}, ["--model.net.norm=batch"], "'blocks.0.norm', a BatchNorm2d"),
    (
        {"class_path": "hetfl.local.Workers", "init_args": {"inner": {"class_path": "hetfl.local.Stacked"}}},
        ["--model.local.optimizer=torch.optim.Adam"],
        "SGD for executor Stacked but got Adam",
    ),
    ({"class_path": "hetfl.local.Workers", "init_args": {"inner": {"class_path": "hetfl.local.Auto"}}}, [], "inner"),
]


@pytest.mark.parametrize(("executor", "more", "message"), WRONG)
def test_wrong_executor_settings_are_reported_in_one_line(
    executor: dict[str, object], more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, f"--model.executor={json.dumps(executor)}", *more]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *DEMO, *settings, f"--trainer.logger.root={tmp_path}"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("hetfl: error: ")
    assert message in last
