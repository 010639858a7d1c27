"""Every compressor has a file in ``configs/compressor`` that can be stacked on a run, and makes its bytes fewer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from hetfl import compression
from hetfl.cli import main
from hetfl.compression import Compressor
from tests.demo_cases import CONFIGS, DEMO, SHORT, UNTESTED

FILES = sorted((CONFIGS / "compressor").glob("*.yaml"))
SMALL = [*SHORT, "--model.net.hidden=[64,64]", *UNTESTED]


def uplink(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text())["model"]["init_args"]["uplink"]["init_args"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_makes_a_run(file: Path, tmp_path: Path) -> None:
    main(["fit", *DEMO, "-c", str(file), *SMALL, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    used = uplink(metrics.with_name("config.yaml"))
    assert used["compressor"]["class_path"] == uplink(file)["compressor"]["class_path"]
    assert used["half_precision"] == uplink(file)["half_precision"]
    ratio = pd.read_csv(metrics)["comm/up_ratio"].max()  # AdaptiveDensity compresses only what takes too long
    assert ratio < 1 if file.stem == "none" else ratio > 1.5


def test_no_compressor_lacks_a_file() -> None:
    classes = [each for each in vars(compression).values() if inspect.isclass(each) and issubclass(each, Compressor)]
    wanted = {f"hetfl.compression.{each.__name__}" for each in classes if not inspect.isabstract(each)}
    assert {uplink(file)["compressor"]["class_path"] for file in FILES} == wanted
