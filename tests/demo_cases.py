"""Short runs of the demo on the command line. Later arguments override earlier ones."""

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
"""Three of ten clients take part in a round, and two gather the statistics of a level."""

SHORT = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *FEW]
"""Two such rounds, both followed by a validation."""

UNTESTED = ["--final_test=false", "--plots=false"]
"""Neither a test nor plots at the end."""


def refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """Return the one-line error of a command that must fail with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("hetfl: error: ")
    assert error.count("\n") == 1
    return error
