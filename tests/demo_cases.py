"""Runs of the demo on the command line that take seconds. What stands later on a command line wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from hetfl.cli import main

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DEMO = ["-c", str(CONFIGS / "demo.yaml")]

FEW = [
    *("--model.local.epochs=1", "--model.selection.clients_per_round=3", "--data.num_clients=10"),
    *("--model.local.batch_size=50", "--model.statistics_clients=2"),
]
"""Three of ten clients a round, and two for the statistics of a level."""

SHORT = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *FEW]
"""Two such rounds, both validated."""

UNTESTED = ["--final_test=false", "--plots=false"]
"""Nothing at the end."""


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """Return the one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("hetfl: error: ")
    assert error.count("\n") == 1
    return error
