"""Relative paths: a run can be resumed from any directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from jsonargparse import Namespace

from hetfl.cli import main
from hetfl.cli.paths import make_absolute
from tests.demo_cases import CONFIGS

NET = (
    "from torch import nn\n"
    "class Small(nn.Linear):\n"
    "    def __init__(self, width: float = 1.0):\n"
    "        super().__init__(2, 2)\n"
)


def namespace(**values: Any) -> Namespace:
    return Namespace(**values)  # type: ignore[no-untyped-call]


def test_paths_are_made_absolute_by_argument_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = namespace(
        class_path="hetfl.data.CSVData",
        init_args=namespace(path="a/b.csv", test_path="/c.csv", target="a", root=".", folder=None, pathology="a"),
        several=[namespace(file="x"), {"log_dir": "y", "url_path": "s3://y", "number_of_paths": 3}],
    )
    make_absolute(given)
    assert given == namespace(
        class_path="hetfl.data.CSVData",
        init_args=namespace(
            path=f"{tmp_path}/a/b.csv", test_path="/c.csv", target="a", root=f"{tmp_path}", folder=None, pathology="a"
        ),
        several=[
            namespace(file=f"{tmp_path}/x"),
            {"log_dir": f"{tmp_path}/y", "url_path": "s3://y", "number_of_paths": 3},
        ],
    )


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_a_relative_path_is_resumed_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    begun.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(begun)
    rows = [f"{i % 7},{i % 5},{'yes' if i % 3 else 'no'}" for i in range(60)]
    Path("table.csv").write_text("\n".join(["x,y,sick", *rows]))
    Path("small_net_of_paths.py").write_text(NET)
    monkeypatch.syspath_prepend(str(begun))
    main(
        ["fit", "-c", str(CONFIGS / "base.yaml"), "-c", str(CONFIGS / "method/fedavg.yaml"), "--plots=false",
         "--data=hetfl.data.CSVData", "--data.path=table.csv", "--data.target=sick", "--data.num_clients=4",
         "--model.net=small_net_of_paths.Small", "--model.selection.clients_per_round=2",
         "--model.uplink.residuals=hetfl.store.DiskStore", "--model.uplink.residuals.folder=kept",
         "--model.uplink.compressor=hetfl.compression.TopK", "--model.uplink.compressor.density=0.5",
         "--trainer.max_epochs=2", "--trainer.logger.root=runs", "--trainer.enable_progress_bar=false"]
    )  # fmt: skip
    (folder,) = {path.parent for path in begun.rglob("metrics.csv")}
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"]["init_args"]["path"] == str(begun / "table.csv")
    monkeypatch.chdir(elsewhere)
    main(["resume", str(folder), "--trainer.max_epochs=3"])
    assert pd.read_csv(folder / "metrics.csv")["step"].tolist() == [0, 1, 2]
    assert not list(elsewhere.iterdir())
