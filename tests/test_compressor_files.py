"""Every file in ``configs/compressor`` can be stacked on a run and reduces its uploaded bytes."""

from __future__ import annotations

import inspect
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from jsonargparse import ArgumentParser

from hetfl import compression
from hetfl.cli import main
from hetfl.compression import Compressor, ErrorFeedback
from tests.demo_cases import CONFIGS, DEMO, FEW, UNTESTED

FILES = sorted((CONFIGS / "compressor").glob("*.yaml"))
SMALL = [*FEW, "--trainer.max_epochs=1", "--model.net.hidden=[64,64]", *UNTESTED]


def uplink(file: Path) -> dict[str, Any]:
    arguments: dict[str, Any] = yaml.safe_load(file.read_text())["model"]["init_args"]["uplink"]["init_args"]
    return arguments


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_names_a_compressor_and_its_arguments(file: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ErrorFeedback, "uplink")
    config = parser.parse_object({"uplink": yaml.safe_load(file.read_text())["model"]["init_args"]["uplink"]})
    made = parser.instantiate(config)["uplink"].compressor
    assert f"hetfl.compression.{type(made).__name__}" == uplink(file)["compressor"]["class_path"]


RUNS = [
    pytest.param(file, id=file.stem, marks=[] if file.stem in ("none", "gamma_fedht", "chain") else [pytest.mark.slow])
    for file in FILES
]
"""Default cases: a compressor that sends everything, one with state, one of two parts; others differ in arguments."""


@pytest.mark.parametrize("file", RUNS)
def test_every_compressor_file_runs_and_saves_bytes(file: Path, tmp_path: Path) -> None:
    main(["fit", *DEMO, "-c", str(file), *SMALL, f"--trainer.logger.root={tmp_path}"])
    (metrics,) = tmp_path.rglob("metrics.csv")
    used = uplink(metrics.with_name("config.yaml"))
    assert used["compressor"]["class_path"] == uplink(file)["compressor"]["class_path"]
    assert used["half_precision"] == uplink(file)["half_precision"]
    ratio = pd.read_csv(metrics)["comm/up_ratio"].max()  # AdaptiveDensity compresses only slow uploads
    assert ratio < 1 if file.stem == "none" else ratio > 1.5


def test_every_compressor_has_a_file() -> None:
    classes = [each for each in vars(compression).values() if inspect.isclass(each) and issubclass(each, Compressor)]
    paths = {f"hetfl.compression.{each.__name__}" for each in classes if not inspect.isabstract(each)}
    assert set(chain.from_iterable(compressors(uplink(file)["compressor"]) for file in FILES)) == paths


def compressors(setting: dict[str, Any]) -> list[str]:
    """Return the class paths of a compressor and of its parts."""
    parts = [value for value in setting.get("init_args", {}).values() if isinstance(value, dict)]
    return [setting["class_path"], *(path for part in parts for path in compressors(part))]
